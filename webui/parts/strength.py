"""How strong an adapter is: ‖ΔW‖ by block, its spectrum, and what a lower rank would lose."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from statistics import median
from typing import Any

import gradio as gr
import pandas as pd

from difflora import DiffloraError, LibraryEntry, profile
from webui.following import QUIET, notice, problem
from webui.shared import Shared

TERMS = 128  # of a spectrum that are drawn
RANKS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class Measured:
    """What to show of an adapter; the plots are None where it cannot be measured, and `words` say why.

    There is a spectrum of `length` terms at most for each of `parts` components.
    """

    name: str
    words: str
    blocks: pd.DataFrame | None = None
    spectrum: pd.DataFrame | None = None
    parts: int = 0
    length: int = 0


def build(shared: Shared, selected: gr.State) -> None:
    """A line of words and two plots for the adapter that is `selected`.

    It takes seconds to measure an SDXL adapter of high rank: what is found is shown only if that adapter is
    still the one that is selected.
    """
    measured = gr.State(None)
    words = gr.HTML(elem_id="strength")
    blocks = gr.BarPlot(
        x="block",
        y="‖ΔW‖",
        y_lim=[0, None],
        title="Change by block",
        height=180,
        x_label_angle=-60,
        x_title=" ",
        visible=False,
        elem_id="blocks",
        buttons=[],
    )
    spectrum = gr.LinePlot(
        x="direction",
        y="√Σσ²",
        y_lim=[0, None],
        title="Spectrum: the n-th direction of all modules",
        height=220,
        x_title=" ",
        visible=False,
        elem_id="spectrum",
        buttons=[],
    )
    outputs = [words, blocks, spectrum]
    selected.change(_waiting, selected, outputs, **QUIET)
    selected.change(
        _measuring(shared), selected, measured, concurrency_limit=2, trigger_mode="multiple", **QUIET
    ).then(_shown, [measured, selected], outputs, **QUIET)


def _waiting(name: str) -> list[Any]:
    off = gr.update(visible=False)
    return [notice("measuring …") if name else "", off, off]


def _measuring(shared: Shared) -> Callable[[str], Measured]:
    known = lru_cache(maxsize=16)(lambda name, path, size, modified: profile(shared.library.get(name)))

    def measure(name: str) -> Measured:
        if not name:
            return Measured(name, "")
        try:
            entry = shared.library.find(name)
            found = known(entry.name, entry.path, entry.size, entry.modified_ns)
        except DiffloraError as error:
            return Measured(name, problem(error))
        blocks = pd.DataFrame(list(found.norms_by_block.items()), columns=["block", "‖ΔW‖"])
        terms = [
            (place, value, component)
            for component, values in found.spectra.items()
            for place, value in enumerate(values[:TERMS], start=1)
        ]
        spectrum = pd.DataFrame(terms, columns=["direction", "√Σσ²", "part"])
        length = max(map(len, found.spectra.values()), default=0)
        return Measured(name, _told(entry, found), blocks, spectrum, len(found.spectra), length)

    return measure


def _shown(measured: Measured | None, selected: str) -> list[Any]:
    if measured is None or measured.name != selected:
        return [gr.skip()] * 3
    if measured.blocks is None or measured.spectrum is None:
        return [measured.words, gr.skip(), gr.skip()]
    return [
        measured.words,
        gr.BarPlot(value=measured.blocks, visible=len(measured.blocks) > 1),
        gr.LinePlot(
            value=measured.spectrum,
            color="part" if measured.parts > 1 else None,
            visible=measured.length > 1,
        ),
    ]


def _told(entry: LibraryEntry, found: Any) -> str:
    lines = []
    if found.modules:
        ranks = [module.effective_rank for module in found.modules.values()]
        lines.append(f"‖ΔW‖ {found.norm:.4g}, effective rank {median(ranks):.1f} (median of the modules)")
    largest = max((len(module.values) for module in found.modules.values()), default=0)
    losses = [f"{rank} loses {found.error(rank):.1%}" for rank in RANKS if rank < largest]
    if losses and found.norm:
        lines.append(f"resized to rank {', '.join(losses)}")
    if found.unknown:
        lines.append(f"{len(found.unknown)} modules change by an amount that depends on the base")
    if entry.facts.words:
        lines.append(f"adds the words {', '.join(entry.facts.words)}")
    return notice("<br>".join(html.escape(line) for line in lines))
