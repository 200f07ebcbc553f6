"""Whether a checkpoint belongs to a run, and whether going on from it is bit-exact, as it can be on a CPU."""

from __future__ import annotations

from typing import Any

from difflora.data.dataset import Dataset
from difflora.errors import CheckpointError, listing
from difflora.families.model import Model
from difflora.training.checkpoint import Checkpoint
from difflora.training.config import TrainConfig
from difflora.training.machine import Machine, environment
from difflora.training.preview import PreviewOptions

# These may change between the start and the end of a run: what is learned does not depend on them.
# `data`, `base_model` and `vae` are places; what lies there is compared by its hash.
_FREE = frozenset(
    (
        *("output", "name", "data", "base_model", "vae", "preset", "device", "threads", "batch_size"),
        *("save_every", "keep_checkpoints", "overwrite", "save_dtype", "tensorboard", "skip_bad"),
        *("cache_latents", "cache_folder", *PreviewOptions.model_fields),
    )
)


def identity(config: TrainConfig, machine: Machine) -> dict[str, Any]:
    """The options that what is learned depends on; batches count over all processes."""
    options = {name: value for name, value in config.model_dump(mode="json").items() if name not in _FREE}
    return options | {"global_batch_size": config.batch_size * machine.processes}


def require_same_run(
    checkpoint: Checkpoint, config: TrainConfig, *, machine: Machine, dataset: Dataset, model: Model
) -> None:
    """Raises CheckpointError listing every difference between the run that was interrupted and this one."""
    now = identity(config, machine)
    then = {name: value for name, value in checkpoint.manifest.config.items() if name not in _FREE}
    differences = [
        f"{name}: was {then.get(name)!r}, is {now.get(name)!r}"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    if checkpoint.manifest.dataset != dataset.fingerprint:
        differences.append("data: an image, a caption or a number of repeats has changed")
    if checkpoint.manifest.base != model.facts.sha256:
        differences.append(f"base_model: not the weights it began with (now {model.facts.name})")
    differences += _other_vae(checkpoint, config, model)
    if differences:
        raise CheckpointError(
            f"{checkpoint.folder}: this checkpoint belongs to another run:\n{listing(differences, 12)}\n"
            "Put them back to continue, or start anew with overwrite=true (--overwrite) or another name."
        )


def _other_vae(checkpoint: Checkpoint, config: TrainConfig, model: Model) -> list[str]:
    """Whether the VAE is another: by its content, where the checkpoint knows it, else by its path."""
    then, now = checkpoint.manifest.vae, model.facts.vae_sha256
    if then is not None:
        names = [f"one of sha256 {sha256[:12]}" if sha256 else "the base's own" for sha256 in (then, now)]
        return [] if then == now else ["vae: was {}, is {}".format(*names)]
    was, path = checkpoint.manifest.config.get("vae"), config.vae
    return [] if was == path else [f"vae: was {was!r}, is {path!r}"]


def resume_notes(checkpoint: Checkpoint, machine: Machine, threads: int) -> tuple[str, ...]:
    """What a user should know when a run continues: where, and what makes it not bit-exact."""
    notes = [f"continued from step {checkpoint.manifest.step} ({checkpoint.folder})"]
    then, now = checkpoint.manifest.environment, environment(machine)
    changed = [f"{name} {then.get(name)} → {now[name]}" for name in now if then.get(name) != now[name]]
    if checkpoint.manifest.threads != threads:
        changed.append(f"threads {checkpoint.manifest.threads} → {threads}")
    if checkpoint.manifest.processes != machine.processes:
        changed.append(f"processes {checkpoint.manifest.processes} → {machine.processes}")
    if changed:
        notes.append("not bit-exact with an uninterrupted run: " + ", ".join(changed))
    if machine.device.type != "cpu":
        notes.append(
            "on a GPU sums may come in another order, so that a continued run is equal up to rounding, not "
            "byte for byte"
        )
    return tuple(notes)
