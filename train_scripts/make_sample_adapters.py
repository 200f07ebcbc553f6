"""Keep the adapters that `make demo` has made: `python -m train_scripts.make_sample_adapters`."""

import shutil
from pathlib import Path
from typing import Annotated

import tyro

from difflora import DiffloraError, read, resize, write

ROOT = Path(__file__).parents[1]
RANK = 8  # a quarter of what they are trained with: a checkout stays small


def main(
    demo: Annotated[Path, tyro.conf.arg(help="folder that the demonstration has written")] = ROOT
    / "outputs"
    / "demo",
    to: Annotated[Path, tyro.conf.arg(help="folder to write into")] = ROOT / "sample_data" / "adapters",
) -> None:
    """Write the adapters in float16 and of rank 8 at most, each with the picture beside it; the page has
    them in its library."""
    files = sorted(demo.glob("*.safetensors"))
    if not files:
        raise DiffloraError(f"{demo}: there are no adapters. Run `make demo` first.")
    to.mkdir(parents=True, exist_ok=True)
    for file in files:
        smaller, report = resize(read(file), rank=RANK)
        written = write(smaller, to / file.name, dtype="float16")
        shutil.copyfile(file.with_suffix(".preview.png"), to / f"{file.stem}.preview.png")
        print(f"{written.path}: {report.total_error:.1%} of ΔW lost, rounded by {written.rounding:.1e}")


if __name__ == "__main__":
    tyro.cli(main)
