"""A training small enough to run many times: four images, one layer, a few steps."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from difflora.training.config import TrainConfig, configure

STYLES = Path(__file__).parents[2] / "sample_data" / "styles" / "halftone"

Configure = Callable[..., TrainConfig]


def _copy(folder: Path, count: int) -> Path:
    for image in sorted(STYLES.glob("*.png"))[:count]:
        shutil.copy(image, folder)
        shutil.copy(image.with_suffix(".txt"), folder)
    return folder


@pytest.fixture(scope="session")
def four_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of a style with their captions."""
    return _copy(tmp_path_factory.mktemp("four"), 4)


@pytest.fixture(scope="session")
def five_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images of a style with their captions."""
    return _copy(tmp_path_factory.mktemp("five"), 5)


@pytest.fixture
def small(four_images: Path, tmp_path: Path, shapes_folder: Path) -> Configure:
    """TrainConfig of the small training, with any option changed."""

    def make(**changes: Any) -> TrainConfig:
        values: dict[str, Any] = {
            "base_model": str(shapes_folder),
            "data": four_images,
            "output": tmp_path / "out",
            "name": "small",
            "steps": 6,
            "batch_size": 2,
            "rank": 2,
            "targets": "mid_block.*attn2",
            "learning_rate": 1e-2,
            "save_every": 2,
            "seed": 7,
            "device": "cpu",
            "threads": 1,
            "tensorboard": False,
        }
        return configure({**values, **changes})

    return make
