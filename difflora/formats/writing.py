"""From an adapter to a file."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from difflora.adapter import Adapter
from difflora.errors import AdapterFileError, ConfigError, listing
from difflora.families import FAMILIES, Family, family
from difflora.files import atomic_write
from difflora.formats import peft
from difflora.formats.container import WrittenBytes, not_finite, write_tensors
from difflora.formats.detect import family_of_paths
from difflora.formats.folders import replacing_folder
from difflora.formats.format import Encoded, Format
from difflora.formats.hashes import kohya_hashes
from difflora.formats.leaves import FACTOR_DTYPES
from difflora.formats.metadata import metadata_of
from difflora.formats.network import widths
from difflora.formats.sources import MAX_DATA


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file that was written, or the folder of a format that is one.

    `data_hash` is the sha256 of its tensor data: `meta.file_hash` of the adapter that is read back.
    `autov3` (12 digits) and `autov2` (10) are the forms in which Civitai and A1111 show hashes; autov2 is ""
    for several files. `rounding` is what storing the tensors in another dtype lost: the largest
    ‖stored − wanted‖ / ‖wanted‖ of any, 0 if none was changed and 1 if one became zero.
    """

    path: Path
    data_hash: str
    autov3: str
    autov2: str
    rounding: float = 0.0


@dataclass(frozen=True, slots=True)
class _Cast:
    tensors: Mapping[str, Tensor]
    rounding: float


def write_file(
    adapter: Adapter, path: str | os.PathLike[str], layout: type[Format], *, dtype: torch.dtype | None
) -> WrittenFile:
    """Writes `adapter`; see `difflora.formats.write`."""
    target = Path(path)
    if not adapter.modules and not adapter.tokens:
        raise AdapterFileError(f"adapter {adapter.meta.name!r} changes no module and brings no word")
    base = _family(adapter)
    encoded = layout.encode(adapter, base)
    cast = _cast(encoded, dtype)
    if problems := not_finite(cast.tensors):
        raise AdapterFileError(
            f"{target}: not written: adapter {adapter.meta.name!r} has values that are not finite"
            f"{f' as {dtype}' if dtype else ''} (tensors: {len(problems)}).\n{listing(problems)}\n"
            "If training diverged, lower the learning rate; if float16 overflowed, write float32 or bfloat16."
        )
    metadata = metadata_of(adapter, base.name)
    try:
        if layout.is_folder:
            written = _write_folders(target, Encoded(cast.tensors, encoded.metadata), metadata)
        else:
            written = _write_one(target, cast.tensors, {**metadata, **encoded.metadata})
    except OSError as error:
        raise AdapterFileError(
            f"{target}: cannot be written: {error.strerror or error}. What was there before is unchanged"
        ) from error
    return WrittenFile(
        target, written.data_hash, written.data_hash[:12], written.file_hash[:10], cast.rounding
    )


def _write_one(target: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> WrittenBytes:
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size > MAX_DATA:
        raise AdapterFileError(
            f"{target}: not written: its tensors have {size >> 20} MiB, and no file of more than "
            f"{MAX_DATA >> 20} MiB is read as an adapter. Store them in half the size (--dtype float16), or "
            "extract or resize to a lower rank (--rank)"
        )
    hashes = kohya_hashes(tensors, metadata)
    hashes["modelspec.hash_sha256"] = f"0x{hashes['sshs_model_hash']}"
    return write_tensors(target, tensors, {**metadata, **hashes})


def _write_folders(target: Path, encoded: Encoded, metadata: Mapping[str, str]) -> WrittenBytes:
    """PEFT's folder of one component, or a folder of such folders."""
    components = peft.components(encoded)
    if strangers := peft.strangers(target, [one.component for one in components]):
        raise AdapterFileError(
            f"{target}: not written: parts of another adapter are there, which would be read with this one.\n"
            f"{listing(strangers)}\nWrite to another folder."
        )
    written = []
    with replacing_folder(target) as new:
        for one in components:
            folder = new if len(components) == 1 else new / one.component
            folder.mkdir(exist_ok=True)
            written.append(_write_one(folder / peft.TENSORS, one.tensors, {**metadata, "format": "pt"}))
            atomic_write(folder / peft.CONFIG, json.dumps(one.config, indent=2, sort_keys=True).encode())
    file_hash = written[0].file_hash if len(written) == 1 else ""
    return WrittenBytes(peft.data_hash([one.data_hash for one in written]), file_hash)


def dtype_of(name: str | torch.dtype | None) -> torch.dtype | None:
    """The dtype of factors that `name` means. Raises ConfigError if factors cannot be stored as that."""
    known = {str(dtype).removeprefix("torch."): dtype for dtype in FACTOR_DTYPES}
    dtype = known.get(name) if isinstance(name, str) else name
    if name is not None and dtype not in FACTOR_DTYPES:
        raise ConfigError(
            f"dtype is {name}, expected {', '.join(known)}, or None to keep that of the factors"
        )
    return dtype


def format_of(name: str, formats: Sequence[type[Format]]) -> type[Format]:
    """The format of that name. Raises ConfigError listing the names if there is none that is written."""
    written = [layout for layout in formats if layout.is_written]
    for layout in written:
        if layout.name == name:
            return layout
    raise ConfigError(
        f"no adapter format is called {name!r}; there are: {', '.join(layout.name for layout in written)}"
    )


def _family(adapter: Adapter) -> Family:
    modules = adapter.modules
    if adapter.meta.family:
        chosen = family(adapter.meta.family)
    else:
        chosen = family_of_paths(modules, widths(modules), adapter.meta.training)
    unknown = [path for path in modules if chosen is None or path not in chosen.paths]
    if chosen is None or unknown:
        names = chosen.name if chosen else ", ".join(member.name for member in FAMILIES)
        raise AdapterFileError(
            f"adapter {adapter.meta.name!r}: {len(unknown)} of {len(modules)} paths are no modules of "
            f"{names}.\n{listing(unknown)}\nSet meta.family to the family it was made for."
        )
    return chosen


def _cast(encoded: Encoded, dtype: torch.dtype | None) -> _Cast:
    """Factors as `dtype`, without one as they are stored; single numbers, such as alpha, stay float32."""
    tensors = encoded.tensors
    wanted = dict.fromkeys(tensors, dtype) if dtype else encoded.stored
    changed = {name: tensors[name].to(form) for name, form in wanted.items() if form and tensors[name].ndim}
    errors = (
        _error(tensors[name], stored) for name, stored in changed.items() if stored is not tensors[name]
    )
    return _Cast({**tensors, **changed}, max(errors, default=0.0))


def _error(wanted: Tensor, stored: Tensor) -> float:
    exact = wanted.float()
    size = float(exact.norm())
    return float((stored.float() - exact).norm()) / size if size else 0.0
