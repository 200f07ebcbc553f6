"""The stages that make the base, each of which continues where it was interrupted."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Literal, TypeAlias

from train_scripts.shapes.folder import load_pipeline, publish
from train_scripts.shapes.trainee import Trainee
from train_scripts.shapes.unet import UNetOptions, encode_scenes, preview_sheet, train_unet, unet_trainee
from train_scripts.shapes.vae import (
    Report,
    VAEOptions,
    decoder_trainee,
    psnr,
    random_pictures,
    reconstruction_sheet,
    train_vae,
    vae_trainee,
)

Stage: TypeAlias = Literal["vae", "unet", "decoder", "install"]


DECODER = VAEOptions(steps=1200, peak_rate=8e-4, anchor=0.0, seed=9)


@dataclass(frozen=True, slots=True)
class BaseOptions:
    """Where the base begins, where training keeps its state, and how often."""

    base: Path
    work: Path
    vae: VAEOptions
    unet: UNetOptions
    decoder: VAEOptions = DECODER
    save_every: int = 200
    sheet_every: int = 600

    @property
    def vae_checkpoint(self) -> Path:
        return self.work / "vae.safetensors"

    @property
    def decoder_checkpoint(self) -> Path:
        return self.work / "decoder.safetensors"

    @property
    def unet_checkpoint(self) -> Path:
        return self.work / "unet.safetensors"


def run_stages(stages: tuple[Stage, ...], options: BaseOptions) -> None:
    """Run the stages in the order given; "install" writes what both trainings have learned to the base."""
    work: dict[Stage, Callable[[BaseOptions], None]] = {
        "vae": run_vae,
        "unet": run_unet,
        "decoder": run_decoder,
        "install": install,
    }
    for stage in stages:
        work[stage](options)


def run_vae(options: BaseOptions) -> None:
    """Train the VAE, with sheets of reconstructions in the work folder."""
    vae, old = load_pipeline(options.base).vae, load_pipeline(options.base).vae
    trainee = _resumed(vae_trainee(vae, options.vae), options.vae_checkpoint)
    unseen = random_pictures(64, seed="unseen")

    def look(step: int) -> None:
        print(f"vae {step}: {psnr(vae, unseen):.2f} dB on unseen pictures", flush=True)
        reconstruction_sheet(vae, options.work / f"vae_{step:06d}.png")

    _follow(train_vae(vae, trainee, old, options.vae), trainee, options.vae_checkpoint, look, options)


def run_decoder(options: BaseOptions) -> None:
    """Train the decoder on, on the latents that the VAE has settled on."""
    vae = load_pipeline(options.base).vae
    _average_into(vae_trainee(vae, options.vae), options.vae_checkpoint)
    trainee = _resumed(decoder_trainee(vae, options.decoder), options.decoder_checkpoint)
    unseen = random_pictures(64, seed="unseen")

    def look(step: int) -> None:
        print(f"decoder {step}: {psnr(vae, unseen):.2f} dB on unseen pictures", flush=True)
        reconstruction_sheet(vae, options.work / f"decoder_{step:06d}.png")

    reports = train_vae(vae, trainee, vae, options.decoder)
    _follow(reports, trainee, options.decoder_checkpoint, look, options)


def run_unet(options: BaseOptions) -> None:
    """Train UNet and text encoder, with sheets of the preview prompts in the work folder."""
    pipeline = load_pipeline(options.base)
    _average_into(vae_trainee(pipeline.vae, options.vae), options.vae_checkpoint)
    data = encode_scenes(pipeline, options.unet, options.work)
    trainee = _resumed(unet_trainee(pipeline, options.unet), options.unet_checkpoint)

    def look(step: int) -> None:
        preview_sheet(pipeline, options.work / f"unet_{step:06d}.png")

    _follow(
        train_unet(pipeline, trainee, data, options.unet), trainee, options.unet_checkpoint, look, options
    )


def install(options: BaseOptions) -> None:
    """Write the base with the averaged weights of the trainings that have a checkpoint."""
    pipeline = load_pipeline(options.base)
    _average_into(vae_trainee(pipeline.vae, options.vae), options.vae_checkpoint)
    _average_into(decoder_trainee(pipeline.vae, options.decoder), options.decoder_checkpoint)
    _average_into(unet_trainee(pipeline, options.unet), options.unet_checkpoint)
    publish(pipeline, options.base)


def _follow(
    reports: Iterator[Report], trainee: Trainee, file: Path, look: Callable[[int], None], options: BaseOptions
) -> None:
    """Run a training to its end: print its loss, save, and look at the averaged state now and then."""
    losses: list[float] = []
    start = monotonic()
    for report in reports:
        losses.append(report.loss)
        if report.step % 50 == 0:
            each = (monotonic() - start) / len(losses)
            print(
                f"{file.stem} {report.step}: loss {sum(losses[-50:]) / 50:.4f}, {each:.2f} s/step", flush=True
            )
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
    if file.exists():
        trainee.load(file)
        trainee.adopt_average()
