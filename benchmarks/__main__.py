"""`make bench`: measures on this machine, prints the tables, and writes benchmarks/RESULTS.md.

Nothing else should run meanwhile. On two idle cores it takes about 80 minutes: speed 5, algebra 4, page 5,
base 8, learning 60; the part `gpu` needs a GPU, and is left out where there is none. One part alone:
`python -m benchmarks base`; the others keep their figures.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, get_args

import tyro

from benchmarks.algebra import algebra_sections
from benchmarks.base_quality import BaseQuality, base_sections
from benchmarks.drawing import Drawing
from benchmarks.judge import Judge, JudgeOptions, trained_judge
from benchmarks.learning import Learning, learning_sections
from benchmarks.loop import loop_row
from benchmarks.measure import Row
from benchmarks.page import PageCost, page_sections
from benchmarks.painter import Painter
from benchmarks.report import RESULTS, Part, Section, keep, kept, markdown, show, this_machine
from benchmarks.stacking import stacking_rows
from benchmarks.training import training_rows
from benchmarks.true_size import true_size_sections
from difflora.families import load

DATA = Path(__file__).parents[1] / "sample_data"
OUTPUT = Path(__file__).parents[1] / "outputs" / "benchmarks"
PartName: TypeAlias = Literal["speed", "gpu", "algebra", "page", "base", "learning"]


@dataclass(frozen=True)
class Flags:
    """What to measure."""

    parts: Annotated[tuple[PartName, ...], tyro.conf.Positional] = get_args(PartName)
    """Which parts."""
    quick: bool = False
    """A handful of each, to see that it runs: figures are only printed, RESULTS.md stays as it is."""
    data: Path = DATA
    """The folder with shapes-sd, shapes-clip, styles and subjects."""
    output: Path = OUTPUT
    """Where adapters, sheets and the judge go; what was trained on the same base is not trained again."""
    adapters: Path | None = None
    """Finished adapters to measure, halftone.safetensors and so on, in place of training any; figures are
    only printed."""
    guidance: float = 4.0
    """How strongly the base follows held-out prompts; the demonstration's adapters have their own."""


def main(flags: Flags) -> None:
    """Measures the parts; each comparison is void, and stops the run, if the peer computes something else."""
    for name in flags.parts:
        sections = PARTS[name](flags)
        if not sections:
            print(f"{name}: nothing here to measure it on; what was measured elsewhere stays", flush=True)
            continue
        show(sections)
        part = Part(name, this_machine(), tuple(sections))
        if replace(flags, parts=Flags.parts, output=Flags.output) != Flags():  # not what the page tells
            keep(part, flags.output / "quick")
        else:
            keep(part)
            RESULTS.write_text(markdown(kept(get_args(PartName))), encoding="utf-8", newline="\n")


def _speed(_: Flags) -> list[Section]:
    rows = [*training_rows(), loop_row(), *stacking_rows()]
    return [Section("Speed", _ABOUT_SPEED, _SPEED_COLUMNS, tuple(map(_cells, rows)))]


_ABOUT_SPEED = (
    "On the CPU. Medians of interleaved runs on the embedded base, ± half the distance of the quartiles. The "
    "peer has the same weights and inputs; the run stops if it differs. A step is forward, backward, "
    "clipping and AdamW; the whole loop also brings the examples, draws noise and timesteps, and reports. "
    "Live adapters act as factors beside a layer until these are as large as its weight; from there on, in "
    "many layers of this small base from two adapters on, as one more weight, W0 + ΔW, at the base's cost."
)
_SPEED_COLUMNS = ("what", "difflora", "diffusers + PEFT", "ratio", "ratio of", "goal")


def _cells(row: Row) -> tuple[str, ...]:
    return row.what, row.ours, row.peer, f"{row.ratio:.2f}", row.meaning, row.goal


def _gpu(flags: Flags) -> list[Section]:
    return true_size_sections()


def _algebra(flags: Flags) -> list[Section]:
    return algebra_sections(quick=flags.quick)


def _page(flags: Flags) -> list[Section]:
    return page_sections(PageCost().quick() if flags.quick else PageCost())


def _base(flags: Flags) -> list[Section]:
    options = BaseQuality(Drawing(flags.guidance))
    judge, model = _judge(flags), load(flags.data / "shapes-sd", device="cpu")
    return base_sections(
        model,
        judge,
        options.quick() if flags.quick else options,
        clip=flags.data / "shapes-clip",
        output=flags.output,
    )


def _learning(flags: Flags) -> list[Section]:
    options = Learning.as_shown()
    judge, model = _judge(flags), load(flags.data / "shapes-sd")
    return learning_sections(
        Painter(model, judge, options.drawing),
        options.quick() if flags.quick else options,
        data=flags.data,
        output=flags.output / "learning",
        adapters=flags.adapters,
    )


def _judge(flags: Flags) -> Judge:
    options = JudgeOptions()
    is_there = options.file(flags.output).exists()
    if not is_there:
        print("training the judge, once: about 3 minutes on two idle cores", flush=True)
    # A judge that is trained already is better than one trained quickly, and as quick.
    few = replace(options, pictures=1500, epochs=8, batch=32)
    return trained_judge(few if flags.quick and not is_there else options, cache=flags.output)


PARTS: Mapping[PartName, Callable[[Flags], list[Section]]] = {
    "speed": _speed,
    "gpu": _gpu,
    "algebra": _algebra,
    "page": _page,
    "base": _base,
    "learning": _learning,
}

if __name__ == "__main__":
    main(tyro.cli(Flags, description=__doc__))
