"""What every test runs with: no network, one thread, fixed seeds, and the embedded base, loaded once."""

import os

# Read when torch and the Hugging Face libraries are imported, so set before anything else is.
os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    GRADIO_ANALYTICS_ENABLED="False",
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)

import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from difflora.families.model import Model
from tests.commandline import Cli, verbs

SHAPES = Path(__file__).parents[1] / "sample_data" / "shapes-sd"

# The same examples on every run, and no time limit for one: other work may share the machine.
settings.register_profile("difflora", deadline=None, derandomize=True, database=None)
settings.load_profile("difflora")

_loaded: dict[Model, str] = {}
"""The session's base, once a test has asked for it, and its checksum when it was loaded."""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Two workers share two cores, and one thread gives one order of summation."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache() -> Iterator[None]:
    """What libraries keep of folders is kept for the session and not for the user."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFLORA_CACHE", folder)
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """One verb of the command line, run in this process."""
    monkeypatch.setattr(sys, "argv", ["difflora"])
    return verbs(capsys)


@pytest.fixture(scope="session")
def shapes_folder() -> Path:
    """The embedded base: a small Stable Diffusion, as a diffusers folder."""
    return SHAPES


@pytest.fixture(scope="session")
def shapes_model(shapes_folder: Path) -> Model:
    """The embedded base in float32 on the CPU, shared by all tests: a test that changes it puts it back."""
    from difflora.families import load

    model = load(str(shapes_folder), device="cpu", dtype="float32")
    _loaded[model] = model.checksum()
    return model


@pytest.fixture(scope="module", autouse=True)
def _base_untouched(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test file leaves the shared base changed."""
    yield
    for model, checksum in _loaded.items():
        assert model.checksum() == checksum, f"{request.node.name} left the shared base model changed"
        assert not model.pristine, f"{request.node.name} left a merged stack in the shared base model"
