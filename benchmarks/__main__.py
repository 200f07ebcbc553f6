"""`make bench`: measures on this machine, prints the table, and writes benchmarks/RESULTS.md.

Nothing else should run meanwhile.
"""

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Row
from benchmarks.stacking import stacking_rows
from benchmarks.training import training_rows

RESULTS = Path(__file__).with_name("RESULTS.md")
LIBRARIES = ("difflora", "torch", "diffusers", "transformers", "peft")


def main() -> None:
    """Measures everything; each comparison is void, and stops the run, if the peer computes something
    else."""
    rows = [*training_rows(), *stacking_rows()]
    table = Table("what", "difflora", "diffusers + PEFT", "ratio", "ratio of")
    for row in rows:
        table.add_row(row.what, row.ours, row.peer, f"{row.ratio:.2f}", row.meaning)
    Console().print(table)
    RESULTS.write_text(_markdown(rows), encoding="utf-8")


def _markdown(rows: Sequence[Row]) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "not run on a GPU"
    lines = [
        "# Measured figures",
        "",
        "Written by `make bench`: medians of interleaved runs on the embedded base, ± half the distance of",
        "the quartiles. The peer has the same weights and inputs; the run stops if it differs.",
        "",
        f"- {platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}",
        f"- GPU: {gpu}",
        f"- {versions}",
        "",
        "| what | difflora | diffusers + PEFT | ratio | ratio of |",
        "|---|---|---|---|---|",
        *(f"| {row.what} | {row.ours} | {row.peer} | {row.ratio:.2f} | {row.meaning} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
