"""`difflora resize`: an adapter of a lower rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from difflora.commands.flags import parse
from difflora.commands.results import (
    base_of,
    conclude,
    require_free,
    save,
    stack_of,
)

ABOUT = """Writes the best adapter of a lower rank, module by module, and says what was lost.

difflora resize big.safetensors --rank 16 --output small.safetensors

difflora resize big.safetensors --energy 0.95 --output small.safetensors"""


@dataclass(frozen=True)
class Flags:
    """What is resized, how far, and where to. One of --rank, --energy and --error is needed."""

    adapter: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")]
    """The adapter file."""
    output: Path
    """The file to write."""
    adapters: Path | None = None
    """Folder of adapters, for a name in place of a file."""
    rank: int | None = None
    """Terms of every module."""
    energy: float | None = None
    """Keep as many terms as hold this share of the squared norm, such as 0.95."""
    error: float | None = None
    """Keep as many terms as leave at most this error, relative to the norm, such as 0.1."""
    base_model: str | None = None
    """The base, which kinds such as DoRA and OFT need."""
    format: Literal["kohya", "diffusers", "peft"] = "kohya"
    """How the file is written."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """What numbers are stored as. Default: that of the factors, float32 where they are new."""
    overwrite: bool = False
    """Replace a file that is there."""
    json: bool = False
    """Print one JSON document."""
    debug: bool = False
    """Show the traceback of an error."""


def run(words: Sequence[str]) -> int:
    """Resizes and writes; returns the exit code."""
    flags = parse(Flags, words, verb="resize", about=ABOUT)
    require_free(flags.output, overwrite=flags.overwrite)
    from difflora.algebra import resize

    ((adapter, _),) = stack_of((flags.adapter,), adapters=flags.adapters)
    base = base_of(flags.base_model)
    resized, report = resize(adapter, rank=flags.rank, energy=flags.energy, error=flags.error, base=base)
    written, document = save(
        resized, flags.output, layout=flags.format, dtype=flags.dtype, overwrite=flags.overwrite
    )
    return conclude(written, document, report, as_json=flags.json)
