"""Figures as tables: each part of the benchmarks keeps its own in a file, RESULTS.md is all of them."""

import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Row

RESULTS = Path(__file__).with_name("RESULTS.md")
KEPT = Path(__file__).with_name("results")
LIBRARIES = ("difflora", "torch", "diffusers", "transformers", "peft")


@dataclass(frozen=True, slots=True)
class Section:
    """One table: what was measured and how, in a few words, its columns, and its rows as text."""

    title: str
    about: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Part:
    """The sections of one part of the benchmarks, and the machine they were measured on."""

    name: str
    machine: tuple[str, ...]
    sections: tuple[Section, ...]


@dataclass(frozen=True, slots=True)
class Share:
    """How many of how many; `str` gives it in percent."""

    count: int
    of: int

    @property
    def value(self) -> float:
        return self.count / self.of if self.of else float("nan")

    def __str__(self) -> str:
        return f"{100 * self.value:.0f} % ({self.count} of {self.of})" if self.of else "none asked"


def share(answers: Sequence[bool]) -> Share:
    """The share of true answers."""
    return Share(sum(answers), len(answers))


def held(value: float, goal: str) -> str:
    """A goal such as "≥ 0.9", "≤ 0.05" or "≥ 27 dB" beside whether `value` meets it; "" without a goal."""
    if not goal:
        return ""
    sign, number = goal.split()[:2]
    is_met = value >= float(number) if sign == "≥" else value <= float(number)
    return f"{goal}: {'met' if is_met else 'missed'}"


def with_goal(one: Share, goal: str) -> str:
    """The share, and whether it meets the goal, such as "≥ 0.9"."""
    return f"{one}, {held(one.value, goal)}" if goal else str(one)


def compared(
    what: str, ours: float, peer: float, meaning: str, *, shown: str = "{:+}", goal: str = ""
) -> Row:
    """Two numbers in the format `shown`, and their ratio, named by `meaning`; the goal is one for `ours`."""
    return Row(what, shown.format(ours), shown.format(peer), ours / peer, meaning, held(ours, goal))


def this_machine() -> tuple[str, ...]:
    """Processor, threads, GPU, versions and the commit of the code, one line each."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "not run on a GPU"
    return (
        f"{platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}",
        f"GPU: {gpu}",
        ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
        f"commit {_commit()}",
    )


def _commit() -> str:
    """The commit that is checked out, and whether code or sample data differ from it."""
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        return f"{commit}, changed" if _git("status", "--short", "*.py", "sample_data") else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    command = ("git", *words)
    root = KEPT.parents[1]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def show(sections: Sequence[Section]) -> None:
    """The tables on the terminal."""
    console = Console()
    for section in sections:
        table = Table(*section.columns, title=section.title, caption=section.about, title_justify="left")
        for row in section.rows:
            table.add_row(*row)
        console.print(table)


def keep(part: Part, folder: Path = KEPT) -> None:
    """Writes the part to its own file, in place of what was measured before."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(part), indent=1, ensure_ascii=False)
    (folder / f"{part.name}.json").write_text(text + "\n", encoding="utf-8", newline="\n")


def kept(names: Sequence[str], folder: Path = KEPT) -> list[Part]:
    """The parts that were measured at any time, in the order of `names`."""
    files = [folder / f"{name}.json" for name in names]
    return [_part(json.loads(file.read_text(encoding="utf-8"))) for file in files if file.exists()]


def _part(values: dict) -> Part:
    sections = tuple(
        Section(
            section["title"],
            section["about"],
            tuple(section["columns"]),
            tuple(tuple(row) for row in section["rows"]),
        )
        for section in values["sections"]
    )
    return Part(values["name"], tuple(values["machine"]), sections)


def markdown(parts: Sequence[Part]) -> str:
    """All parts as one page."""
    lines = [
        "# Measured figures",
        "",
        "Written by `make bench`, part by part: `python -m benchmarks --help`.",
    ]
    if all(part.name != "gpu" for part in parts):
        lines += ["", "SD 1.5 at 512² and SDXL at 1024² (`python -m benchmarks gpu`): not run on a GPU."]
    for part in parts:
        for section in part.sections:
            lines += ["", f"## {section.title}", "", section.about, ""]
            lines += [_row(section.columns), "|" + "---|" * len(section.columns)]
            lines += [_row(row) for row in section.rows]
        lines += ["", *(f"- {line}" for line in part.machine)]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
