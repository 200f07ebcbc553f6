"""The embedded base, which every test file leaves as it was."""

from collections.abc import Iterator

import pytest

from difflora.families.model import Model


@pytest.fixture(scope="module")
def model(shapes_model: Model) -> Iterator[Model]:
    before = shapes_model.checksum()
    yield shapes_model
    assert shapes_model.checksum() == before
    assert not any("forward" in module.__dict__ for module in shapes_model.pipeline.unet.modules())
