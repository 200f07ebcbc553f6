"""`difflora bake`: adapters written into a base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from difflora.commands.flags import parse, usage_error
from difflora.commands.results import print_json, report_document, report_rows, show_facts, stack_of

ABOUT = """Writes a base model with adapters merged into it; everything else is copied as it is.

difflora bake sd15.safetensors style.safetensors:0.8 --output sd15-style.safetensors"""


@dataclass(frozen=True)
class Flags:
    """Into what, what, and where to."""

    base: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="BASE")]
    """A diffusers folder, a .safetensors checkpoint, or a Hub id."""
    adapter: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILE[:weight[:text]]")]
    """Adapter files with their weights on the UNet and, where it differs, on the text encoders."""
    output: Path
    """The file or folder to write, of the same form as the base; it must not exist."""
    adapters: Path | None = None
    """Folder of adapters, for names in place of files."""
    json: bool = False
    """Print one JSON document."""
    debug: bool = False
    """Show the traceback of an error."""


def run(words: Sequence[str]) -> int:
    """Bakes; returns the exit code."""
    flags = parse(Flags, words, verb="bake", about=ABOUT)
    if not flags.adapter:
        raise usage_error("bake", "needed: FILE[:weight[:text]], one or more")
    from difflora.algebra import bake

    stack = stack_of(flags.adapter, adapters=flags.adapters)
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    target, report = bake(flags.base, stack, flags.output)
    facts = report_document(report)
    if flags.json:
        print_json({"output": str(target), "report": facts})
    else:
        rows = report_rows(facts)
        rows["error"] = f"{facts['total_error']:.3%} of ΔW lost by rounding to the base's precision"
        show_facts(f"{target}", rows)
    return 0
