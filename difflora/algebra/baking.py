"""A stack written into the weight files of a base."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

from difflora.adapter import Stack
from difflora.algebra.checkpoints import Checkpoint, Stored, open_checkpoint, part_of
from difflora.algebra.report import Report
from difflora.apply.merged import bias_change
from difflora.errors import ApplyError
from difflora.families.model import Model
from difflora.files import fsync_folder, replacing
from difflora.fit import modules_fit

# Weights in forms that are not changed, and would contradict those that are.
_OTHER_WEIGHTS = frozenset(
    {".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".onnx_data", ".gguf"}
)
_UNTRUE_HASHES = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")


def bake(base: Model | str | Path, stack: Stack, out: str | os.PathLike[str]) -> tuple[Path, Report]:
    """Writes the base with `stack` merged into it to `out`, and returns where it is and what was changed.

    `base` is a diffusers folder, a single file, an id on the Hub, or a model, which stands for the files that
    it was loaded from. The result has the same form and precision: every changed weight and bias is
    W0 + Σ weight · ΔW, summed in float32 and rounded once; every other tensor and file is copied as it is.
    One tensor is in memory at a time. `out` is there whole or not at all.

    Of a folder with weights in several files, such as those of half precision, each is baked.

    Report.share is ‖ΔW‖ / ‖W0‖, Report.error the part of ΔW that rounding lost, Report.left_out the new words
    of adapters, which a base cannot hold, and what is not copied: weights in other forms, and hidden files.
    Raises FitError if an adapter does not fit, ApplyError if anything is at `out` or it is inside the base.
    """
    target = Path(out)
    if os.path.lexists(target):
        raise ApplyError(f"{target} is there already; give a new name for the model to be written")
    checkpoint = open_checkpoint(base)
    shapes = checkpoint.shapes()
    for adapter, _ in stack:
        modules_fit(
            adapter, checkpoint.facts, shapes, has_bias=lambda path: (path, "bias") in checkpoint.by_path
        ).require()
    if checkpoint.root.is_dir() and target.resolve().is_relative_to(checkpoint.root.resolve()):
        raise ApplyError(f"{target} lies inside the base; give a place beside it for the model to be written")
    baker = _Baker(stack)
    left_out = {f"word {word}": "a base has no place for new words" for word in stack.tokens()}
    if checkpoint.root.is_dir():
        left_out |= _bake_folder(checkpoint, baker, target)
    else:
        with replacing(target) as file:
            _copy(checkpoint.root, file)
            baker.write(file, checkpoint.root, checkpoint.tensors)
    return target, baker.report(left_out)


@dataclass(eq=False)
class _Baker:
    """Changes tensors of files in place, and keeps account."""

    stack: Stack
    norm: dict[str, float] = field(default_factory=dict)
    error: dict[str, float] = field(default_factory=dict)
    share: dict[str, float] = field(default_factory=dict)

    def write(self, file: BinaryIO, source: Path, tensors: Sequence[Stored]) -> None:
        """Overwrites the tensors of the copy `file` of `source` that the stack changes."""
        places = _places(source)
        paths = set(self.stack.paths())
        with safe_open(source, framework="pt") as content:
            for stored in tensors:
                changed = sorted({one.path for one in stored.slices} & paths)
                if stored.file == source and changed:
                    tensor = content.get_tensor(stored.name)
                    for path in changed:
                        tensor = self._changed(tensor, stored, path)
                    file.seek(places[stored.name])
                    file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)

    @torch.no_grad()
    def _changed(self, tensor: Tensor, stored: Stored, path: str) -> Tensor:
        original = part_of(tensor, stored, path)
        if stored.leaf == "bias":
            change = bias_change(self.stack, path, original)
        else:
            change = self.stack.delta(path, original)
        if change is None:
            return tensor
        written = (original.float() + change).to(tensor.dtype)
        if stored.leaf == "weight":
            self._account(path, original, change, written)
        result = tensor.clone()
        rows = stored.rows(path)
        if stored.transposed:
            result[:, rows] = written.T
        else:
            result[rows] = written
        return result

    def _account(self, path: str, original: Tensor, change: Tensor, written: Tensor) -> None:
        wanted, base = float(change.norm()), float(original.float().norm())
        lost = float((written.float() - original.float() - change).norm())
        self.norm[path] = wanted
        self.share[path] = wanted / base if base else 0.0
        # Sums in float32 are the exact result, whatever their last bit. Of several files the worst counts.
        error = lost / wanted if wanted and written.dtype != torch.float32 else 0.0
        self.error[path] = max(error, self.error.get(path, 0.0))

    def report(self, left_out: Mapping[str, str]) -> Report:
        return Report(self.error, norm=self.norm, share=self.share, left_out=left_out)


def _bake_folder(checkpoint: Checkpoint, baker: _Baker, target: Path) -> dict[str, str]:
    """Writes the whole folder; returns what was not copied."""
    by_file = _by_file(checkpoint)
    components = {part.name for part in checkpoint.family.components}
    files, hidden = _contents(checkpoint.root)
    left_out = {
        path.relative_to(checkpoint.root).as_posix(): "hidden, no part of the model" for path in hidden
    }
    with _new_folder(target) as folder:
        for source in files:
            relative = source.relative_to(checkpoint.root)
            is_weights = source.suffix in _OTHER_WEIGHTS and source not in by_file
            if is_weights and (len(relative.parts) == 1 or relative.parts[0] in components):
                left_out[relative.as_posix()] = "weights of the base without the stack"
                continue
            copy = folder / relative
            copy.parent.mkdir(parents=True, exist_ok=True)
            with open(copy, "xb") as file:
                _copy(source, file)
                if source in by_file:
                    baker.write(file, source, by_file[source])
                file.flush()
                os.fsync(file.fileno())
    return left_out


def _by_file(checkpoint: Checkpoint) -> Mapping[Path, Sequence[Stored]]:
    """The files that are baked, with their tensors: those of the base, and variants of the same shapes."""
    shapes = {(one.path, stored.leaf): stored.shape for stored in checkpoint.tensors for one in stored.slices}
    others = {
        stored.file
        for stored in checkpoint.variants
        if any(shapes.get((one.path, stored.leaf)) != stored.shape for one in stored.slices)
    }
    found: dict[Path, list[Stored]] = defaultdict(list)
    for stored in (*checkpoint.tensors, *checkpoint.variants):
        if stored.file not in others:
            found[stored.file].append(stored)
    return found


def _contents(root: Path) -> tuple[list[Path], list[Path]]:
    """The files below `root`, and what is hidden there, such as `.git` and `.cache`, whole."""
    files, hidden = [], []
    for folder, folders, names in os.walk(root, followlinks=True):
        here = Path(folder)
        hidden += [here / name for name in (*folders, *names) if name.startswith(".")]
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [here / name for name in names if not name.startswith(".") and (here / name).is_file()]
    return sorted(files), sorted(hidden)


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A new folder that is renamed to `target` when the block ends without an error."""
    temporary = target.parent / f".{target.name[:64]}.{secrets.token_hex(4)}.tmp"
    temporary.mkdir()
    try:
        yield temporary
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_folder(target.parent)


def _copy(source: Path, file: BinaryIO) -> None:
    """The bytes of `source`; a weight file less the hashes in its metadata, which will be untrue."""
    with open(source, "rb") as original:
        if source.suffix == ".safetensors":
            file.write(_header_without_hashes(original))
        shutil.copyfileobj(original, file, 1 << 20)


def _header_without_hashes(file: BinaryIO) -> bytes:
    """The header, of the same length: what is taken out is made up for with spaces, as the format allows."""
    length = int.from_bytes(file.read(8), "little")
    text = file.read(length)
    content = json.loads(text)
    metadata = content.get("__metadata__", {})
    if not any(name in metadata for name in _UNTRUE_HASHES):
        return length.to_bytes(8, "little") + text
    content["__metadata__"] = {key: value for key, value in metadata.items() if key not in _UNTRUE_HASHES}
    shorter = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    return length.to_bytes(8, "little") + shorter.ljust(length)


def _places(source: Path) -> dict[str, int]:
    """Where each tensor of a file begins. The header was read and checked before."""
    with open(source, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        content = json.loads(file.read(length))
    return {
        name: 8 + length + entry["data_offsets"][0]
        for name, entry in content.items()
        if name != "__metadata__"
    }
