"""From an adapter to a file."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from difflora.adapter import Adapter
from difflora.errors import AdapterFileError, ConfigError, listing
from difflora.families import FAMILIES, Family, family
from difflora.formats.container import not_finite, write_tensors
from difflora.formats.detect import family_of_paths
from difflora.formats.format import Format
from difflora.formats.hashes import kohya_hashes
from difflora.formats.leaves import FACTOR_DTYPES, writable
from difflora.formats.metadata import metadata_of
from difflora.kinds import LoRA


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file that was written.

    `data_hash` is the sha256 of its tensor data, by which the adapter is known once it is read back;
    `autov3` (12 digits) and `autov2` (10) are the forms in which Civitai and A1111 show hashes.
    """

    path: Path
    data_hash: str
    autov3: str
    autov2: str


def write_file(
    adapter: Adapter, path: str | os.PathLike[str], layout: type[Format], *, dtype: torch.dtype | None
) -> WrittenFile:
    """Writes `adapter`; see `difflora.formats.write`."""
    target = Path(path)
    modules = writable(adapter, layout.title)
    base = _family(adapter, modules)
    cast = _cast(adapter, modules, dtype)
    encoded = layout.encode(cast, base)
    if problems := not_finite(encoded.tensors):
        raise AdapterFileError(
            f"{target}: not written: adapter {adapter.meta.name!r} has values that are not finite"
            f"{f' as {dtype}' if dtype else ''} (tensors: {len(problems)}).\n{listing(problems)}\n"
            "If training diverged, lower the learning rate; if float16 overflowed, write float32 or bfloat16."
        )
    metadata = {**metadata_of(cast, base.name, modules), **encoded.metadata}
    metadata |= kohya_hashes(encoded.tensors, metadata)
    metadata["modelspec.hash_sha256"] = f"0x{metadata['sshs_model_hash']}"
    try:
        written = write_tensors(target, encoded.tensors, metadata)
    except OSError as error:
        raise AdapterFileError(
            f"{target}: cannot be written: {error.strerror}. What was there before is unchanged"
        ) from error
    return WrittenFile(target, written.data_hash, written.data_hash[:12], written.file_hash[:10])


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
    """The format of that name. Raises ConfigError listing the names if there is none."""
    for layout in formats:
        if layout.name == name:
            return layout
    raise ConfigError(
        f"no adapter format is called {name!r}; there are: {', '.join(f.name for f in formats)}"
    )


def _family(adapter: Adapter, modules: Mapping[str, LoRA]) -> Family:
    if adapter.meta.family:
        chosen = family(adapter.meta.family)
    else:
        widths = {path: lora.down.shape[1] for path, lora in modules.items()}
        chosen = family_of_paths(modules, widths, adapter.meta.training)
    unknown = [path for path in modules if chosen is None or path not in chosen.paths]
    if chosen is None or unknown:
        names = chosen.name if chosen else ", ".join(member.name for member in FAMILIES)
        raise AdapterFileError(
            f"adapter {adapter.meta.name!r}: {len(unknown)} of {len(modules)} paths are no modules of "
            f"{names}.\n{listing(unknown)}\nSet meta.family to the family it was made for."
        )
    return chosen


def _cast(adapter: Adapter, modules: Mapping[str, LoRA], dtype: torch.dtype | None) -> Adapter:
    if dtype is None:
        return adapter
    cast = {
        path: (replace(lora, down=lora.down.to(dtype), up=lora.up.to(dtype)),)
        for path, lora in modules.items()
    }
    return replace(adapter, modules=cast)
