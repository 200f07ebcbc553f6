"""`difflora extract`: the difference of two models as an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from difflora.commands.flags import parse
from difflora.commands.results import (
    conclude,
    require_free,
    save,
)

ABOUT = """Writes the adapter that turns one model into another, as nearly as its rank allows.

difflora extract sd15.safetensors finetuned.safetensors --rank 32 --output difference.safetensors"""


@dataclass(frozen=True)
class Flags:
    """Of what, how near, and where to. One of --rank, --energy and --error is needed."""

    before: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="BEFORE")]
    """The model to begin from: a diffusers folder, a .safetensors checkpoint, or a Hub id."""
    after: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="AFTER")]
    """The model to arrive at."""
    output: Path
    """The file to write."""
    rank: int | None = None
    """Terms of every module."""
    energy: float | None = None
    """Keep as many terms as hold this share of the squared norm, such as 0.95."""
    error: float | None = None
    """Keep as many terms as leave at most this error, relative to the norm, such as 0.1."""
    vectors: bool = False
    """Take norms and biases along, exactly; few programs read such files."""
    format: Literal["kohya", "diffusers", "peft"] = "kohya"
    """How the file is written."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = "float16"
    """What numbers are stored as."""
    overwrite: bool = False
    """Replace a file that is there."""
    json: bool = False
    """Print one JSON document."""
    debug: bool = False
    """Show the traceback of an error."""


def run(words: Sequence[str]) -> int:
    """Extracts and writes; returns the exit code."""
    flags = parse(Flags, words, verb="extract", about=ABOUT)
    require_free(flags.output, overwrite=flags.overwrite)
    from difflora.algebra import extract

    adapter, report = extract(
        flags.before,
        flags.after,
        rank=flags.rank,
        energy=flags.energy,
        error=flags.error,
        vectors=flags.vectors,
    )
    written, document = save(
        adapter, flags.output, layout=flags.format, dtype=flags.dtype, overwrite=flags.overwrite
    )
    return conclude(written, document, report, as_json=flags.json)
