"""The stages that make the base from a seed, each of which continues where it was interrupted."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any, Literal, TypeAlias

import torch
from transformers import CLIPTextModel

from difflora.errors import CheckpointError
from train_scripts.shapes.architecture import assemble, load_tokenizer, new_clip, new_unet, new_vae
from train_scripts.shapes.clip import CLIPOptions, clip_trainee, train_clip, twins, twins_told_apart
from train_scripts.shapes.folder import publish, publish_clip
from train_scripts.shapes.trainee import Trainee
from train_scripts.shapes.unet import UNetOptions, encode_scenes, preview_sheet, train_unet, unet_trainee
from train_scripts.shapes.vae import (
    Report,
    VAEOptions,
    psnr,
    random_pictures,
    reconstruction_sheet,
    settle,
    train_vae,
    training_pictures,
    vae_trainee,
)

Stage: TypeAlias = Literal["clip", "vae", "unet", "install"]


@dataclass(frozen=True, slots=True)
class BaseOptions:
    """Where the tokenizer lies and the base goes, where training keeps its state, and how often.

    `base` and `clip_folder` are folders of the published models, `work` one of checkpoints and sheets.
    """

    base: Path
    clip_folder: Path
    work: Path
    clip: CLIPOptions = field(default_factory=CLIPOptions)
    vae: VAEOptions = field(default_factory=VAEOptions)
    unet: UNetOptions = field(default_factory=UNetOptions)
    save_every: int = 200
    sheet_every: int = 1000

    def checkpoint(self, stage: Stage) -> Path:
        return self.work / f"{stage}.safetensors"


def run_stages(stages: tuple[Stage, ...], options: BaseOptions) -> None:
    """Run the stages in the order given; "install" writes what the trainings have learned to the base."""
    work: dict[Stage, Callable[[BaseOptions], None]] = {
        "clip": run_clip,
        "vae": run_vae,
        "unet": run_unet,
        "install": install,
    }
    for stage in stages:
        work[stage](options)


def run_clip(options: BaseOptions) -> None:
    """Train the CLIP, and say now and then how many unseen twins it tells apart."""
    tokenizer = load_tokenizer(options.base)
    clip = new_clip(tokenizer, options.clip.seed)
    trainee = _resumed(clip_trainee(clip, options.clip), options.checkpoint("clip"))
    unseen = twins(replace(options.clip, scenes=256, seed=options.clip.seed + 1000), options.work)

    def look(step: int) -> None:
        clip.eval()
        print(
            f"clip {step}: tells {twins_told_apart(clip, tokenizer, unseen):.1%} of twins apart", flush=True
        )
        clip.train()

    data = twins(options.clip, options.work)
    _follow("clip", train_clip(clip, tokenizer, trainee, data, options.clip), trainee, look, options)


def run_vae(options: BaseOptions) -> None:
    """Train the VAE, with sheets of reconstructions in the work folder."""
    vae = new_vae(options.vae.seed)
    trainee = _resumed(vae_trainee(vae, options.vae), options.checkpoint("vae"))
    unseen = random_pictures(64, seed="unseen")

    def look(step: int) -> None:
        print(f"vae {step}: {psnr(vae, unseen):.2f} dB on unseen pictures", flush=True)
        reconstruction_sheet(vae, options.work / f"vae_{step:06d}.png")

    pictures = training_pictures(options.vae, options.work)
    _follow("vae", train_vae(vae, trainee, pictures, options.vae), trainee, look, options)


def run_unet(options: BaseOptions) -> None:
    """Train the UNet on the frozen text encoder, with sheets of the preview prompts in the work folder."""
    pipeline = _pipeline(options, trained_clip(options))
    data = encode_scenes(pipeline, options.unet, options.work)
    trainee = _resumed(unet_trainee(pipeline, options.unet), options.checkpoint("unet"))

    def look(step: int) -> None:
        preview_sheet(pipeline, options.work / f"unet_{step:06d}.png")

    _follow("unet", train_unet(pipeline, trainee, data, options.unet), trainee, look, options)


def install(options: BaseOptions) -> None:
    """Write the base and its CLIP with the averaged weights of the trainings."""
    clip = trained_clip(options)
    pipeline = _pipeline(options, clip)
    _average_into(unet_trainee(pipeline, options.unet), options.checkpoint("unet"))
    publish(pipeline, options.base)
    publish_clip(clip, options.clip_folder)


def trained_clip(options: BaseOptions) -> Any:
    """The CLIP with the averaged weights of its training."""
    clip = new_clip(load_tokenizer(options.base), options.clip.seed)
    _average_into(clip_trainee(clip, options.clip), options.checkpoint("clip"))
    return clip.eval()


def trained_vae(options: BaseOptions) -> Any:
    """The VAE with the averaged weights of its training, and its scale."""
    vae = new_vae(options.vae.seed)
    _average_into(vae_trainee(vae, options.vae), options.checkpoint("vae"))
    vae.to(memory_format=torch.contiguous_format)
    settle(vae, seed=options.vae.seed)
    return vae


def _pipeline(options: BaseOptions, clip: Any) -> Any:
    """What is trained of the base so far, and a UNet with the weights that it begins from."""
    text_encoder = CLIPTextModel(clip.config.text_config)
    text_encoder.load_state_dict(clip.text_model.state_dict())
    return assemble(
        vae=trained_vae(options),
        text_encoder=text_encoder.eval(),
        tokenizer=load_tokenizer(options.base),
        unet=new_unet(options.unet.seed),
    )


def _follow(
    stage: Stage,
    reports: Iterator[Report],
    trainee: Trainee,
    look: Callable[[int], None],
    options: BaseOptions,
) -> None:
    """Run a training to its end: print its loss, save, and look at the averaged state now and then."""
    file = options.checkpoint(stage)
    losses: list[float] = []
    start = monotonic()
    for report in reports:
        losses.append(report.loss)
        if report.step % 50 == 0:
            each = (monotonic() - start) / len(losses)
            print(f"{stage} {report.step}: loss {sum(losses[-50:]) / 50:.4f}, {each:.2f} s/step", flush=True)
        if report.step % options.save_every == 0:
            trainee.save(file)
        if report.step % options.sheet_every == 0:
            with trainee.averaged():
                look(report.step)
    trainee.save(file)
    with trainee.averaged():
        look(trainee.step)


def _resumed(trainee: Trainee, file: Path) -> Trainee:
    if file.exists():
        trainee.load(file)
        print(f"{file.stem}: continuing after step {trainee.step}", flush=True)
    return trainee


def _average_into(trainee: Trainee, file: Path) -> None:
    """Give a model the averaged weights of `file`.

    Raises CheckpointError naming the stage that has to run to its end before.
    """
    if not file.exists():
        raise CheckpointError(f"{file}: not trained yet. Run the stage '{file.stem}' first.")
    trainee.load(file)
    if trainee.step < trainee.rate.total:
        raise CheckpointError(
            f"{file}: trained for {trainee.step} of {trainee.rate.total} steps only. Run the stage "
            f"'{file.stem}' to its end first."
        )
    trainee.adopt_average()
