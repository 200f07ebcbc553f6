"""Runs a training from a JSON file of options, for tests that need a process of its own."""

import json
import sys
from pathlib import Path

from diffusers import StableDiffusionPipeline  # imported now, for processes that fork from this one

from difflora.training.config import configure
from difflora.training.loop import train

__all__ = ["StableDiffusionPipeline", "run"]


def run(options: Path) -> None:
    """Trains to the end."""
    for _ in train(configure(json.loads(options.read_text()))):
        pass


if __name__ == "__main__":
    run(Path(sys.argv[1]))
