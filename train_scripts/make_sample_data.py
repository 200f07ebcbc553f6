"""Write the sample image folders: `python -m train_scripts.make_sample_data`."""

from pathlib import Path
from typing import Annotated

import tyro

from train_scripts.shapes.sample_data import write_sample_data

SAMPLE_DATA = Path(__file__).parents[1] / "sample_data"


def main(
    to: Annotated[Path, tyro.conf.arg(help="folder to write into")] = SAMPLE_DATA,
    seed: Annotated[int, tyro.conf.arg(help="the same seed gives the same bytes")] = 2024,
) -> None:
    """Write folders of images and captions to learn styles and a subject from."""
    print(f"{len(write_sample_data(to, seed=seed))} images in {to}")


if __name__ == "__main__":
    tyro.cli(main)
