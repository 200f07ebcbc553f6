"""`difflora merge`: several adapters as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from difflora.commands.flags import parse, usage_error
from difflora.commands.results import (
    base_of,
    conclude,
    require_free,
    save,
    stack_of,
)
from difflora.errors import ConfigError

ABOUT = """Writes one adapter that does what a weighted mix of adapters does.

difflora merge halftone.safetensors:0.7 neon.safetensors:0.4 --output both.safetensors

Without --rank the sum is exact: ranks add up, and what has no low-rank form makes its module a whole matrix.
With --rank every module is cut to the best approximation of that rank, and the error is printed."""


@dataclass(frozen=True)
class Flags:
    """What is merged, how, and where to."""

    adapter: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILE[:weight[:text]]")]
    """Adapter files with their weights on the UNet and, where it differs, on the text encoders."""
    output: Path
    """The file to write."""
    adapters: Path | None = None
    """Folder of adapters, for names in place of files."""
    method: Literal["add", "average", "ties", "dare", "magnitude"] = "add"
    """How: the exact sum, the mean, or one of the published ways to resolve conflicts."""
    rank: int | None = None
    """Cut every module to this rank."""
    density: float = 0.5
    """Of ties, dare and magnitude: the share of entries that is kept."""
    seed: int = 0
    """Of dare: the seed of its random choice."""
    block: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """BLOCK=FACTOR, may be repeated: IN04=0.5, MID=0, BASE=0 (text encoders), or a pattern of paths."""
    base_model: str | None = None
    """The base, which kinds such as DoRA and OFT need unless one stands alone at weight 1."""
    format: Literal["kohya", "diffusers", "peft"] = "kohya"
    """How the file is written."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """What numbers are stored as. Default: that of the factors."""
    overwrite: bool = False
    """Replace a file that is there."""
    json: bool = False
    """Print one JSON document."""
    debug: bool = False
    """Show the traceback of an error."""


def run(words: Sequence[str]) -> int:
    """Merges and writes; returns the exit code."""
    flags = parse(Flags, words, verb="merge", about=ABOUT)
    require_free(flags.output, overwrite=flags.overwrite)
    if not flags.adapter:
        raise usage_error("merge", "needed: FILE[:weight[:text]], one or more")
    from difflora.algebra import merge

    stack = stack_of(flags.adapter, adapters=flags.adapters)
    merged, report = merge(
        stack,
        method=flags.method,
        rank=flags.rank,
        base=base_of(flags.base_model),
        block_weights=dict(_factor(text) for text in flags.block),
        density=flags.density,
        seed=flags.seed,
    )
    written, document = save(
        merged, flags.output, layout=flags.format, dtype=flags.dtype, overwrite=flags.overwrite
    )
    sources = ", ".join(f"{weight.unet:g} × {adapter.meta.name}" for adapter, weight in stack)
    facts = {"method": flags.method, "of": sources}
    return conclude(written, document, report, as_json=flags.json, facts=facts)


def _factor(text: str) -> tuple[str, float]:
    name, _, number = text.rpartition("=")
    try:
        factor = float(number)
    except ValueError:
        factor = math.nan
    if not name or not math.isfinite(factor):
        raise ConfigError(f"--block {text}: expected BLOCK=FACTOR with a finite number, such as IN04=0.5")
    return name, factor
