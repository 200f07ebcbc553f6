"""Adapter files, one file a format. A new format is one file here and one entry in FORMATS."""

import os

import torch

from difflora.adapter import Adapter
from difflora.families import family as family_named
from difflora.formats.cloneofsimo import Cloneofsimo
from difflora.formats.diffusers import Diffusers
from difflora.formats.format import Format
from difflora.formats.hashes import FileHashes, hashes
from difflora.formats.kohya import Kohya
from difflora.formats.modelspec import described
from difflora.formats.peft import Peft
from difflora.formats.reading import FileReport, inspect_file, read_file
from difflora.formats.writing import WrittenFile, dtype_of, format_of, write_file

FORMATS: tuple[type[Format], ...] = (Kohya, Peft, Cloneofsimo, Diffusers)
"""In the order in which they are asked whether a file is theirs."""

__all__ = [
    "FORMATS",
    "FileHashes",
    "FileReport",
    "Format",
    "WrittenFile",
    "described",
    "hashes",
    "inspect",
    "read",
    "write",
]


def read(path: str | os.PathLike[str], *, family: str | None = None) -> Adapter:
    """The adapter in a safetensors file or a folder, whichever of FORMATS it is in; factors keep their dtype.

    A folder is PEFT's, one of PEFT's folders for each component, or diffusers'. A file of words alone
    (textual inversion) is an adapter without modules.

    The family of base models is found from the tensor names, then shapes, then metadata; `family` overrides
    it. `meta.name` is for display only; `meta.file_hash` is the sha256 of the tensor data, by which the
    adapter is known, with the scales if these are not in the tensors.

    Raises AdapterFileError naming everything that is wrong: tensors that are unknown, incomplete,
    contradictory or not finite, changes that no kind describes, modules that the family does not have.
    Nothing is ever left out.
    """
    return read_file(path, FORMATS, family=None if family is None else family_named(family))


def inspect(path: str | os.PathLike[str]) -> FileReport:
    """What a file holds, from its header alone; raises nothing, whatever is in the file."""
    return inspect_file(path, FORMATS)


def write(
    adapter: Adapter,
    path: str | os.PathLike[str],
    *,
    format: str = "kohya",
    dtype: str | torch.dtype | None = None,
) -> WrittenFile:
    """Writes `adapter` and returns its hashes. The same adapter gives the same bytes.

    `format` is the name of one of FORMATS that is written: "kohya" holds every kind and words, "diffusers"
    LoRA, DoRA and their biases, "peft", which is a folder, replaced weights as well. `dtype` is what factors
    are stored as ("float32", "float16", "bfloat16"); None keeps theirs, and WrittenFile.rounding says what
    another loses. alpha = scale · rank is stored in float32. What is read back has the same factors bit for
    bit, and the same scale if alpha is a float32 number, else to 1 part in 10^7; but in kohya files for UNets
    LoRAs whose alphas diffusers would mistake have one alpha and other factors, of which ΔW is the same to
    the rounding of their dtype.

    Raises AdapterFileError if the format cannot hold the adapter, a value is not finite, the tensors are more
    than `read` takes, or the disk refuses; what was there before is then untouched. ConfigError if there is
    no such format or dtype.
    """
    return write_file(adapter, path, format_of(format, FORMATS), dtype=dtype_of(dtype))
