"""What fits a model, and what is said of what does not."""

import pytest
import torch

from difflora.adapter import Adapter, AdapterMeta
from difflora.errors import FitError
from difflora.families.model import Model
from difflora.fit import fits
from difflora.kinds import LoRA

PATH = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"


def adapter(width: int | None, words: dict[str, int]) -> Adapter:
    """A LoRA of that many inputs on PATH (None: no module), and words of vectors of those widths."""
    modules = {} if width is None else {PATH: (LoRA(torch.ones(1, width), torch.ones(128, 1), 1.0),)}
    tokens = {word: {"text_encoder": torch.ones(1, dim)} for word, dim in words.items()}
    return Adapter(modules, AdapterMeta(name="odd"), tokens)


def test_words_alone_fit(shapes_model: Model) -> None:
    report = fits(adapter(None, {"zig": 128}), shapes_model)
    assert report.ok and report.words == ("zig",) and not report.matched
    report.require()


def test_an_adapter_of_nothing_does_not_fit(shapes_model: Model) -> None:
    with pytest.raises(FitError, match="changes no module at all"):
        fits(adapter(None, {}), shapes_model).require()


def test_modules_and_words_that_do_not_fit_are_all_named(shapes_model: Model) -> None:
    report = fits(adapter(7, {"zig": 128, "zag": 768}), shapes_model)
    assert (
        report.words == ("zig",) and list(report.misfit_words) == ["zag"] and list(report.misshapen) == [PATH]
    )
    with pytest.raises(FitError, match=r"(?s)2 of 3 modules and words.*q_proj.*'zag' has vectors of 768"):
        report.require()
