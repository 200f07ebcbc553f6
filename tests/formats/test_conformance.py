"""docs/formats.md says what is so."""

import torch

from difflora.families.model import Model
from tests.formats.conformance import DOCUMENT, TITLES, page
from tests.kinds.samples import MAKERS


def test_the_page_is_what_the_code_does(shapes_model: Model) -> None:
    assert TITLES.keys() == MAKERS.keys()
    with torch.no_grad():
        found = page(shapes_model)
    assert found == DOCUMENT.read_text(encoding="utf-8"), (
        "docs/formats.md is not up to date: python -m tests.formats.conformance"
    )
