"""Checkpoints that survive being killed at any moment, and that a run resumes from: on a CPU bit for bit.

    OUTPUT/checkpoints/NAME/step-00000100/
        adapter.safetensors      the factors in float32; a usable adapter file
        optimizer.safetensors    the optimizer's tensors
        manifest.json            step, configuration, environment, and the sha256 of both files

A checkpoint is written under a temporary name, flushed to disk, and then renamed: a folder with a final name
is whole. The newest one whose hashes agree is used; older ones are removed only after a newer one was
verified.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from difflora.adapter import Adapter
from difflora.errors import CheckpointError
from difflora.files import atomic_write, fsync_folder
from difflora.formats import read, write

ADAPTER, OPTIMIZER, MANIFEST = "adapter.safetensors", "optimizer.safetensors", "manifest.json"


class CheckpointOptions(BaseModel):
    """When the state of the run is saved."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    save_every: int = Field(100, ge=1, description="Optimizer steps between checkpoints.")
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints that are kept.")
    overwrite: bool = Field(False, description="Start anew although results or checkpoints are there.")


class Manifest(BaseModel):
    """What a checkpoint belongs to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    config: dict[str, Any]
    dataset: str
    base: str
    environment: dict[str, str]
    threads: int
    processes: int
    scaler_state: dict[str, Any]
    vae: str | None = None
    """`BaseFacts.vae_sha256`; None in checkpoints of versions that kept its path in `config` alone."""
    optimizer_state: dict[str, Any] = {}
    sha256: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    folder: Path
    manifest: Manifest

    def adapter(self) -> Adapter:
        """The factors in float32."""
        return read(self.folder / ADAPTER)

    def load_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Puts the optimizer's state back."""
        tensors = safetensors.torch.load_file(self.folder / OPTIMIZER)
        optimizer.load_state_dict(_unflatten(self.manifest.optimizer_state, tensors))


def save(
    root: Path, adapter: Adapter, optimizer: torch.optim.Optimizer, *, manifest: Manifest, keep: int
) -> Path:
    """Writes a checkpoint below `root`, verifies it, then removes all but the newest `keep`; returns its
    folder."""
    final = root / f"step-{manifest.step:08d}"
    partial = root / f".partial-{manifest.step:08d}-{os.getpid()}"
    root.mkdir(parents=True, exist_ok=True)
    for stale in root.glob(".partial-*"):
        shutil.rmtree(stale)
    partial.mkdir()
    state, tensors = _flatten(optimizer.state_dict())
    write(adapter, partial / ADAPTER, format="kohya")
    atomic_write(partial / OPTIMIZER, safetensors.torch.save(tensors))
    hashes = {name: _sha256(partial / name) for name in (ADAPTER, OPTIMIZER)}
    done = manifest.model_copy(update={"optimizer_state": state, "sha256": hashes})
    atomic_write(partial / MANIFEST, done.model_dump_json(indent=2).encode())
    fsync_folder(partial)
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    fsync_folder(root)
    if _verified(final) is None:
        raise CheckpointError(
            f"{final}: read back differently from what was written; the disk may be failing"
        )
    older = [folder for folder in _folders(root) if folder.name < final.name]
    damaged = [folder for folder in _folders(root) if folder.name > final.name]  # passed over when resuming
    for folder in older[keep - 1 :] + damaged:
        shutil.rmtree(folder)
    return final


def latest(root: Path) -> Checkpoint | None:
    """The newest whole checkpoint below `root`; None if there is none.

    Raises CheckpointError if there are checkpoints, but every one of them is damaged.
    """
    folders = _folders(root)
    for folder in folders:
        manifest = _verified(folder)
        if manifest is not None:
            return Checkpoint(folder, manifest)
    if folders:
        raise CheckpointError(
            f"{root}: none of the {len(folders)} checkpoints is whole: files differ from their sha256. "
            "Nothing was changed. Start anew with overwrite=true (--overwrite)."
        )
    return None


def newest_step(root: Path) -> int | None:
    """The step of the newest checkpoint below `root`, whole or not; None if there is none."""
    folders = _folders(root)
    return int(folders[0].name.removeprefix("step-")) if folders else None


def _folders(root: Path) -> list[Path]:
    return sorted(root.glob("step-*"), reverse=True)


def _verified(folder: Path) -> Manifest | None:
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        whole = all(_sha256(folder / name) == digest for name, digest in manifest.sha256.items())
    except (OSError, ValidationError):
        return None
    return manifest if whole and manifest.sha256 else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flatten(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An optimizer's state dict as plain JSON values, with its tensors apart under `group.name` keys."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {"param_groups": json.loads(json.dumps(state["param_groups"])), "state": {}}
    for index, values in state["state"].items():
        plain["state"][str(index)] = _without_tensors(values, str(index), tensors)
    return plain, tensors


def _without_tensors(values: Mapping[str, Any], prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The values that are no tensors; tensors go to `tensors` as `prefix/name`. 8-bit optimizers nest."""
    rest: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Tensor):
            tensors[f"{prefix}/{name}"] = value.detach().cpu().contiguous()
        elif isinstance(value, Mapping):
            rest[name] = _without_tensors(value, f"{prefix}/{name}", tensors)
        else:
            rest[name] = value
    return rest


def _unflatten(plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    state = json.loads(json.dumps(plain["state"]))
    for key, tensor in tensors.items():
        *parents, name = key.split("/")
        node = state
        for parent in parents:
            node = node[parent]
        node[name] = tensor
    by_number = {int(index): values for index, values in state.items()}
    return {"state": by_number, "param_groups": plain["param_groups"]}
