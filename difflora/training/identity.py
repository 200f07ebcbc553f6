"""Whether a checkpoint belongs to a run, and whether going on from it is bit-exact."""

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
# `data` and `base_model` are places; what lies there is compared by its hash.
_FREE = frozenset(
    (
        *("output", "name", "data", "base_model", "preset", "device", "threads", "batch_size"),
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
    then, now = checkpoint.manifest.config, identity(config, machine)
    differences = [
        f"{name}: was {then.get(name)!r}, is {now.get(name)!r}"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    if checkpoint.manifest.dataset != dataset.fingerprint:
        differences.append("data: an image, a caption or a number of repeats has changed")
    if checkpoint.manifest.base != model.facts.sha256:
        differences.append(f"base_model: not the weights it began with (now {model.facts.name})")
    if differences:
        raise CheckpointError(
            f"{checkpoint.folder}: this checkpoint belongs to another run:\n{listing(differences, 12)}\n"
            "Put them back to continue, or start anew with overwrite=true (--overwrite) or another name."
        )


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
    return tuple(notes)
