"""`difflora compare`: how adapters relate, and what becomes of them in one mix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.table import Table

from difflora.commands.console import make_console
from difflora.commands.drawing import write_picture
from difflora.commands.flags import parse, usage_error
from difflora.commands.results import (
    WORST,
    base_of,
    free_target,
    print_json,
    require_free,
    show_facts,
    stack_of,
)

if TYPE_CHECKING:
    from difflora.adapter import Stack
    from difflora.algebra import Comparison, Interference

ABOUT = """Compares adapters: norms, cosines, shared directions, and how much of each survives in their sum.

difflora compare halftone.safetensors:0.7 neon.safetensors:0.4 --heat clash.png"""


@dataclass(frozen=True)
class Flags:
    """What is compared."""

    adapter: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILE[:weight[:text]]")]
    """Two or more adapter files, with their weights in the mix."""
    adapters: Path | None = None
    """Folder of adapters, for names in place of files."""
    base_model: str | None = None
    """The base, which kinds such as DoRA and OFT need."""
    heat: Path | None = None
    """Write a picture (PNG) of where they clash, by block and sort of layer."""
    overwrite: bool = False
    """Replace a picture that is there."""
    json: bool = False
    """Print one JSON document."""
    debug: bool = False
    """Show the traceback of an error."""


def run(words: Sequence[str]) -> int:
    """Compares; returns the exit code."""
    flags = parse(Flags, words, verb="compare", about=ABOUT)
    if len(flags.adapter) < 2:
        raise usage_error("compare", "two or more adapters are compared")
    if flags.heat is not None:
        require_free(flags.heat, overwrite=flags.overwrite, flag="--heat")
    from difflora.algebra import compare, heat_map, interference

    stack, base = stack_of(flags.adapter, adapters=flags.adapters), base_of(flags.base_model)
    mixed = interference(stack, base=base)
    (first, _), (second, _), *more = stack
    pair = None if more else compare(first, second, base=base)
    if flags.heat is not None:
        target = free_target(flags.heat, overwrite=flags.overwrite, flag="--heat")
        write_picture(heat_map(mixed.clash, title="clash: 1 where adapters cancel", limit=1.0), target)
    if flags.json:
        print_json({"mix": _mix_document(stack, mixed), "pair": pair and _pair_document(pair)})
        return 0
    if pair is not None:
        _show_pair(pair)
    _show_mix(stack, mixed)
    if flags.heat is not None:
        make_console().print(str(flags.heat))
    return 0


def _mix_document(stack: Stack, mixed: Interference) -> dict[str, Any]:
    survival = _survival(stack, mixed)
    adapters = [
        {
            "name": adapter.meta.name,
            "data_hash": adapter.data_hash,
            "survives": survival[adapter.data_hash],
            "weight": {"unet": weight.unet, "text": weight.text},
            "balanced_weight": {"unet": balanced.unet, "text": balanced.text},
        }
        for (adapter, weight), balanced in zip(stack, mixed.weights, strict=True)
    ]
    return {"adapters": adapters, "clash": dict(mixed.clash)}


def _survival(stack: Stack, mixed: Interference) -> dict[str, float]:
    """Data hash -> how much of an adapter is in the sum; the same one given twice counts once."""
    hashes = dict.fromkeys(adapter.data_hash for adapter, _ in stack)
    return dict(zip(hashes, mixed.total_survival, strict=True))


def _pair_document(pair: Comparison) -> dict[str, Any]:
    modules = {
        path: {
            "norm_a": module.norm_a,
            "norm_b": module.norm_b,
            "cosine": module.cosine,
            "overlap": module.overlap,
            "effective_rank_a": module.rank_a,
            "effective_rank_b": module.rank_b,
        }
        for path, module in pair.modules.items()
    }
    totals = {"norm_a": pair.norm_a, "norm_b": pair.norm_b, "cosine": pair.cosine}
    return totals | {"modules": modules, "only_a": dict(pair.only_a), "only_b": dict(pair.only_b)}


def _show_pair(pair: Comparison) -> None:
    alike = max(pair.modules.items(), key=lambda item: abs(item[1].cosine), default=None)
    rows = {
        "modules": f"{len(pair.modules)} changed by both, {len(pair.only_a)} by the first alone, "
        f"{len(pair.only_b)} by the second alone",
        "‖ΔW‖": f"{pair.norm_a:.4g} and {pair.norm_b:.4g}",
        "cosine": f"{pair.cosine:+.4f} over all modules",
    }
    if alike is not None:
        path, module = alike
        rows["most alike"] = f"{path}: cosine {module.cosine:+.3f}, shared directions {module.overlap:.0%}"
    show_facts("the two by themselves", rows)


def _show_mix(stack: Stack, mixed: Interference) -> None:
    table = Table(title="in the mix", title_justify="left", title_style="bold")
    for column in ("adapter", "weight", "survives", "weight that keeps the energy"):
        table.add_column(column)
    survival = _survival(stack, mixed)
    for (adapter, weight), balanced in zip(stack, mixed.weights, strict=True):
        name = adapter.meta.name
        table.add_row(name, f"{weight.unet:g}", f"{survival[adapter.data_hash]:.0%}", f"{balanced.unet:.3f}")
    console = make_console()
    console.print(table)
    console.print("where they clash most (1: they cancel, 0: they do not meet, below: they add up):")
    for path, clash in list(mixed.clash.items())[:WORST]:
        console.print(f"  {clash:+.3f}  {path}")
