"""A prepared run: everything that a step needs, and what it writes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from difflora.adapter import Adapter
from difflora.data.buckets import assign_by
from difflora.data.captions import with_trigger
from difflora.data.dataset import Dataset
from difflora.data.folder import scan
from difflora.encode import encode
from difflora.families import load
from difflora.families.model import Model
from difflora.formats import write
from difflora.inject import Injected, injected, targets
from difflora.prompts import escape
from difflora.recipe import Request
from difflora.training import checkpoint as checkpoints
from difflora.training.config import TrainConfig
from difflora.training.examples import Examples, Inputs
from difflora.training.facts import meta
from difflora.training.identity import identity, require_same_run, resume_notes
from difflora.training.loss import Diffusion, Noised
from difflora.training.machine import Machine, environment, start_machine
from difflora.training.optimizers import make_optimizer, require_optimizer
from difflora.training.preview import draw_previews, preview_requests
from difflora.training.results import Results, set_aside, write_record
from difflora.training.schedules import total_steps


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What a step needs.

    `first_step` counts the steps done before; `rates` are those of its groups; `previews` are what is drawn.
    """

    config: TrainConfig
    results: Results
    machine: Machine
    model: Model
    dataset: Dataset
    examples: Examples
    diffusion: Diffusion
    injected: Injected
    optimizer: torch.optim.Optimizer
    rates: tuple[float, ...]
    scaler: torch.amp.GradScaler
    total: int
    first_step: int
    previews: tuple[Request, ...]
    notes: tuple[str, ...]

    def predict(self, noised: Noised, inputs: Inputs) -> Tensor:
        """What the UNet says of noisy latents: (B, 4, h, w) in the base's dtype."""
        device, dtype = self.machine.device, self.model.dtype
        added = None
        if inputs.text.pooled is not None:
            pooled = inputs.text.pooled.to(dtype)
            added = {"text_embeds": pooled, "time_ids": inputs.time_ids.to(device)}
        return self.model.pipeline.unet(
            noised.noisy.to(device, dtype),
            noised.timesteps.to(device),
            inputs.text.hidden.to(dtype),
            added_cond_kwargs=added,
        ).sample

    @torch.no_grad()
    def with_preserved(self, noised: Noised, inputs: Inputs) -> Noised:
        """The batch with the base's own prediction as the target of its preserved rows.

        Source: ostris 2025, ai-toolkit's differential output preservation.
        """
        rows = list(inputs.preserved)
        if not rows:
            return noised
        with self.injected.off():
            alike = replace(
                inputs,
                text=self.examples.condition([inputs.captions[row] for row in rows]),
                time_ids=inputs.time_ids[rows],
            )
            base = self.predict(
                replace(noised, noisy=noised.noisy[rows], timesteps=noised.timesteps[rows]), alike
            )
        target = noised.target.to(base.device, copy=True)
        target[rows] = base.to(target.dtype)
        return replace(noised, target=target)

    def set_aside(self) -> tuple[str, ...]:
        """Makes room for an overwriting run; returns notes on where the adapter lies that it replaces."""
        if self.machine.is_main:
            set_aside(self.results)
        self.machine.accelerator.wait_for_everyone()
        kept, place = self.results.replaced, self.results.adapter
        return (f"{place} is kept as {kept} until this training has finished",) if kept.exists() else ()

    def is_saved(self, step: int) -> bool:
        """Whether the state after `step` steps is on disk without more ado: the same on all processes."""
        return step in (self.first_step, self.total) or step % self.config.save_every == 0

    def save(self, step: int) -> Path | None:
        """Saves the state after `step` steps; returns the folder, or None on processes that do not write."""
        if not self.machine.is_main:
            return None
        manifest = checkpoints.Manifest(
            step=step,
            config=identity(self.config, self.machine),
            dataset=self.dataset.fingerprint,
            base=self.model.facts.sha256,
            environment=environment(self.machine),
            threads=torch.get_num_threads(),
            processes=self.machine.processes,
            scaler_state=self.scaler.state_dict(),
            vae=self.model.facts.vae_sha256,
        )
        adapter, keep = self._adapter(step, torch.float32), self.config.keep_checkpoints
        return checkpoints.save(
            self.results.checkpoints, adapter, self.optimizer, manifest=manifest, keep=keep
        )

    def checkpoint(self, step: int) -> Path | None:
        """`save`, for which all processes wait."""
        folder = self.save(step)
        self.machine.accelerator.wait_for_everyone()
        return folder

    def finish(self, loss: float) -> Path | None:
        """Writes the adapter and its record, then removes the checkpoints; returns the adapter's file."""
        if self.machine.is_main:
            adapter = self._adapter(self.total, getattr(torch, self.config.save_dtype))
            written = write(adapter, self.results.adapter)
            record = {
                "adapter": {"file": written.path.name, "autov3": written.autov3, "autov2": written.autov2},
                "steps": self.total,
                "resumed_from": self.first_step,
                "final_loss": loss,
                "config": self.config.model_dump(mode="json"),
                "base": asdict(self.model.facts),
                "data": {"images": len(self.dataset.items), "fingerprint": self.dataset.fingerprint},
                "environment": environment(self.machine),
                "threads": torch.get_num_threads(),
                "processes": self.machine.processes,
            }
            write_record(self.results.record, record)
            shutil.rmtree(self.results.checkpoints, ignore_errors=True)
            self.results.replaced.unlink(missing_ok=True)
        self.machine.accelerator.wait_for_everyone()
        return self.results.adapter if self.machine.is_main else None

    def draw_previews(self, step: int) -> list[Path]:
        """Draws the previews with the factors as they are now; returns the files."""
        idle = _idle_parts(self.model, self.examples)
        try:
            _move(idle, self.machine.device)
            return draw_previews(self.model, self.previews, folder=self.results.previews, step=step)
        finally:
            _move(idle, torch.device("cpu"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars to the tracker, where one is in use."""
        self.machine.accelerator.log(dict(values), step=step)

    def why_not_finite(self, step: int, value: float) -> str:
        """What to tell the user when loss or gradient is not finite in the step after `step` steps."""
        broken = [factor.path for factor in self.injected.factors if not _finite(*factor.parameters.values())]
        if broken:
            cause = f"the factors of {len(broken)} layers diverged ({broken[0]} ...): lower the learning rate"
        elif not _finite(*self.model.pipeline.unet.parameters()):
            cause = "the base has weights that are not finite: its file is damaged"
        else:
            cause = f"numbers left the range of {self.machine.dtype}: try precision='fp32', or learn slower"
        newest = checkpoints.newest_step(self.results.checkpoints)
        kept = (
            f"The checkpoint of step {newest} in {self.results.checkpoints} is untouched"
            if newest is not None
            else "There is no checkpoint yet"
        )
        return f"step {step + 1} of {self.total}: loss or gradient is {value}: {cause}. {kept}."

    def _adapter(self, step: int, dtype: torch.dtype) -> Adapter:
        about = meta(self.config, self.model, dataset=self.dataset, step=step, total=self.total)
        return self.injected.collect(about, dtype=dtype)


def _finite(*tensors: Tensor) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


@contextmanager
def prepared(config: TrainConfig, results: Results) -> Iterator[Run]:
    """Scans the folder, loads the base, fills the caches, attaches the factors and finds the newest
    checkpoint.

    Problems of the folder, of the previews and of the machine are raised before the base is loaded, those of
    options with the base before the first image is encoded. An overwriting run takes no notice of what is
    there. On leaving, the model is as it was loaded.
    """
    dataset = scan(config)
    previews = _previews(config, dataset)
    config.output.mkdir(parents=True, exist_ok=True)
    machine = start_machine(config)
    require_optimizer(config, machine.device)
    checkpoint = None if config.overwrite else checkpoints.latest(results.checkpoints)
    if checkpoint is not None and config.threads is None:
        torch.set_num_threads(checkpoint.manifest.threads)
    model = _load(config, machine)
    _require_possible(config, model)
    if checkpoint is not None:
        require_same_run(checkpoint, config, machine=machine, dataset=dataset, model=model)
    buckets = assign_by(dataset.sizes, config, native=model.facts.resolution)
    examples = Examples(config, dataset, buckets=buckets, model=model, processes=machine.processes)
    _fill(examples, model, machine)
    batches = examples.batches_per_epoch
    machine.accelerator.init_trackers(config.name)
    try:
        with injected(model, config, seed=config.seed) as factors:
            optimizer, rates = make_optimizer(config, unet=factors.unet, text=factors.text)
            scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.dtype == torch.float16)
            if checkpoint is not None:
                factors.restore(checkpoint.adapter())
                checkpoint.load_optimizer(optimizer)
                _restore_scaler(scaler, checkpoint)
            yield Run(
                config=config,
                results=results,
                machine=machine,
                model=model,
                dataset=dataset,
                examples=examples,
                diffusion=Diffusion(model.noise_schedule().alphas_cumprod, model.facts.prediction_type),
                injected=factors,
                optimizer=optimizer,
                rates=rates,
                scaler=scaler,
                total=total_steps(config, batches_per_epoch=batches, accumulation=config.accumulation),
                first_step=checkpoint.manifest.step if checkpoint else 0,
                previews=previews,
                notes=_notes(checkpoint, machine, dataset),
            )
    finally:
        machine.accelerator.end_training()


def _previews(config: TrainConfig, dataset: Dataset) -> tuple[Request, ...]:
    """What previews are drawn of: the prompts that were given, or the captions of the first images."""
    if config.preview_every is None:
        return ()
    captions = dict.fromkeys(with_trigger(item.caption, config.trigger) for item in dataset.items)
    prompts = config.preview_prompts or [escape(text) for text in captions][: config.preview_count]
    return preview_requests(config, prompts, clip_skip=config.clip_skip)


def _require_possible(config: TrainConfig, model: Model) -> None:
    """Raises ConfigError if the options select no layer of the base, or a text layer that it has not."""
    targets(model, config)
    encode(model, [""], clip_skip=config.clip_skip)


def _restore_scaler(scaler: torch.amp.GradScaler, checkpoint: checkpoints.Checkpoint) -> None:
    """Puts the scale of the loss back.

    A run that had none, for it was not in fp16, gets a new one: what was learned is in float32 in any case,
    and the scale finds its height by itself.
    """
    if checkpoint.manifest.scaler_state:
        scaler.load_state_dict(checkpoint.manifest.scaler_state)


def _fill(examples: Examples, model: Model, machine: Machine) -> None:
    """Fills the caches, without the UNet on the GPU, which has no part in that, and leaves there what
    training needs: for cards that hold no more than one of the two."""
    unet = [model.pipeline.unet]
    _move(unet, torch.device("cpu"))
    examples.prepare()
    _move(_idle_parts(model, examples), torch.device("cpu"))
    _move(unet, machine.device)
    machine.forget_peak()


def _idle_parts(model: Model, examples: Examples) -> list[nn.Module]:
    """What training does not need once the caches are filled: it makes room on the GPU between previews."""
    parts: list[nn.Module] = []
    if examples.latents_are_cached:
        parts.append(model.pipeline.vae)
    if examples.texts_are_cached:
        parts += [model.component(part.name) for part in model.family.components if part.is_text]
    return parts


def _move(parts: Sequence[nn.Module], device: torch.device) -> None:
    for part in parts:
        part.to(device)


def _load(config: TrainConfig, machine: Machine) -> Model:
    model = load(
        config.base_model,
        device=machine.device,
        dtype=machine.dtype,
        prediction_type=config.prediction_type,
        zero_terminal_snr=config.zero_terminal_snr,
        vae=config.vae,
        attention=config.attention,
    )
    # It works once an image, and those of SD 1.x leave the range of float16 at times.
    model.pipeline.vae.float()
    if config.gradient_checkpointing:
        model.pipeline.unet.enable_gradient_checkpointing()
    return model


def _notes(checkpoint: checkpoints.Checkpoint | None, machine: Machine, dataset: Dataset) -> tuple[str, ...]:
    skipped = tuple(f"left out {problem.name}: {problem.reason}" for problem in dataset.skipped)
    if checkpoint is None:
        return skipped
    return resume_notes(checkpoint, machine, torch.get_num_threads()) + skipped
