"""A base without its weights fits the same adapters as the base itself."""

from pathlib import Path

import pytest

from difflora import Adapter, AdapterMeta, fits, outline, read
from difflora.errors import BaseModelError
from difflora.families.model import Model

FIXTURES = Path(__file__).parents[1] / "fixtures" / "adapters"


def test_names_shapes_and_facts_are_those_of_the_loaded_base(
    shapes_folder: Path, shapes_model: Model
) -> None:
    found = outline(shapes_folder)
    assert dict(found.shapes()) == dict(shapes_model.shapes())
    assert found.family is shapes_model.family
    for fact in ("family", "variant", "prediction_type", "zero_terminal_snr", "resolution", "name"):
        assert getattr(found.facts, fact) == getattr(shapes_model.facts, fact)
    assert all(parameter.is_meta for parameter in found.component("unet").parameters())


@pytest.mark.parametrize("name", ["kohya_sd15_lora", "kohya_sdxl_diffnames_lora", "lyco_sd15_dora_out"])
def test_it_says_of_adapters_what_the_loaded_base_says(
    shapes_folder: Path, shapes_model: Model, name: str
) -> None:
    adapter = read(FIXTURES / f"{name}.safetensors")
    ours, wanted = fits(adapter, outline(shapes_folder)), fits(adapter, shapes_model)
    assert (ours.matched, ours.missing, ours.misshapen) == (wanted.matched, wanted.missing, wanted.misshapen)


def test_words_are_held_against_it_too(shapes_folder: Path, shapes_model: Model) -> None:
    import torch

    words = {"right": torch.zeros(2, 128), "wide": torch.zeros(1, 768), "long": torch.zeros(40, 128)}
    tokens = {word: {"text_encoder": vectors} for word, vectors in words.items()}
    adapter = Adapter({}, AdapterMeta(name="words", family="sd1"), tokens)
    found, wanted = fits(adapter, outline(shapes_folder)), fits(adapter, shapes_model)
    assert found.words == wanted.words == ("right",)
    assert found.misfit_words == wanted.misfit_words


def test_what_is_no_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="no such file or folder"):
        outline(tmp_path / "nothing")
