"""Files of words, and words bundled with an adapter: every layout, read and written."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from difflora.adapter import Adapter, AdapterMeta, Tokens, same
from difflora.errors import AdapterFileError
from difflora.families import FAMILIES, Family, family
from difflora.formats import embeddings, inspect, read, write
from difflora.formats.container import read_tensors, write_tensors
from difflora.formats.pickles import convert_pickle
from difflora.kinds import LoRA

K = "lora_unet_mid_block_attentions_0_proj_in"
L, G = torch.arange(8 * 768.0).reshape(8, 768) / 1000, torch.arange(8 * 1280.0).reshape(8, 1280) / 1000
ONE, BOTH = {"text_encoder": L}, {"text_encoder": L, "text_encoder_2": G}

LORA = {f"{K}.lora_down.weight": torch.ones(2, 4, 1, 1), f"{K}.lora_up.weight": torch.ones(4, 2, 1, 1)}

# What a file called zig.safetensors holds -> its family and words.
LAYOUTS: dict[str, tuple[dict[str, Tensor], str, Tokens]] = {
    "emb_params": ({"emb_params": L}, "sd1", {"zig": ONE}),
    "of Stable Diffusion 2": (
        {"emb_params": torch.ones(2, 1024)},
        "sd1",
        {"zig": {"text_encoder": torch.ones(2, 1024)}},
    ),
    "a1111's pickle": ({"string_to_param.*": L}, "sd1", {"zig": ONE}),
    "sdxl": ({"clip_l": L, "clip_g": G}, "sdxl", {"zig": BOTH}),
    "clip_l alone": ({"clip_l": L}, "sd1", {"zig": ONE}),
    "diffusers": ({"<cat-toy>": L}, "sd1", {"<cat-toy>": ONE}),
    "diffusers, two words": ({"<a>": L[:1], "<b>": L}, "sd1", {"<a>": {"text_encoder": L[:1]}, "<b>": ONE}),
    "diffusers, one vector": ({"<cat>": L[0]}, "sd1", {"<cat>": {"text_encoder": L[:1]}}),
    "diffusers, no brackets": ({"sks": L[0]}, "sd1", {"sks": {"text_encoder": L[:1]}}),
    "half": ({"emb_params": L.half()}, "sd1", {"zig": {"text_encoder": L.half()}}),
    "a bundle alone": (
        {"bundle_emb.cat.clip_l": L, "bundle_emb.cat.clip_g": G, "bundle_emb.dog.clip_l": L},
        "sdxl",
        {"cat": BOTH, "dog": ONE},
    ),
    "beside a lora": ({**LORA, "bundle_emb.cat.emb_params": L}, "sd1", {"cat": ONE}),
    "beside a lora, from a pickle": (
        {**LORA, "bundle_emb.my cat.string_to_param.*": L},
        "sd1",
        {"my cat": ONE},
    ),
    "beside a lora, names with dots": (
        {**LORA, "bundle_emb.v1.5.emb_params": L, "bundle_emb.clip_l.emb_params": L},
        "sd1",
        {"clip_l": ONE, "v1.5": ONE},
    ),
    "beside a lora, without a name": ({**LORA, "emb_params": L}, "sd1", {"zig": ONE}),
}


def as_file(folder: Path, tensors: dict[str, Tensor], *, stem: str = "zig") -> Path:
    path = folder / f"{stem}.safetensors"
    write_tensors(path, tensors)
    return path


def equal(a: Tokens, b: Tokens) -> bool:
    return same(Adapter({}, tokens=a), Adapter({}, tokens=b))


@pytest.mark.parametrize(("tensors", "name", "words"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_layout_is_read(tmp_path: Path, tensors: dict[str, Tensor], name: str, words: Tokens) -> None:
    path = as_file(tmp_path, tensors)
    found, report = read(path), inspect(path)
    assert found.meta.family == name
    assert equal(found.tokens, words)
    assert len(found.modules) == len(tensors.keys() & LORA.keys()) / 2
    assert report.ok and report.words == tuple(words)


def test_a_pickle_of_a1111_is_read_once_it_is_converted(tmp_path: Path) -> None:
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": L}, "name": "x"}, tmp_path / "zag.pt")
    convert_pickle(tmp_path / "zag.pt", tmp_path / "zag.safetensors")
    assert equal(read(tmp_path / "zag.safetensors").tokens, {"zag": ONE})


REFUSED: dict[str, tuple[dict[str, Tensor], str]] = {
    "t5 of another family": ({"emb_params": L, "t5": torch.ones(1, 8)}, "emb_params: .* flux"),
    "outputs": (
        {"clip_l": L, "clip_g": G, "clip_l_out": L},
        "clip_l_out: is an output embedding of OneTrainer",
    ),
    "outputs beside a lora": (
        {**LORA, "bundle_emb.cat.clip_l_out": L},
        "bundle_emb.cat.clip_l_out: is an output embedding .* 'cat' .* what clip_l makes .* without bundled",
    ),
    "other models": ({"emb_params": L, "llama": L}, "llama: vectors of a word for llama"),
    "whole numbers": ({"emb_params": L.to(torch.int64)}, "emb_params: .*int64, expected float32"),
    "three dimensions": ({"emb_params": L[None]}, r"emb_params: .*\(1, 8, 768\), expected \(vectors, dim\)"),
    "too many": (
        {"emb_params": torch.ones(76, 768)},
        "emb_params: a word of 76 vectors, expected at most 75",
    ),
    "twice": ({"emb_params": L, "string_to_param.*": L}, "'zig' for text_encoder are there twice"),
    "infinite": ({"emb_params": L / 0}, "emb_params: 6144 of 6144 values are NaN or inf"),
    "one number": ({"emb_params": torch.tensor(1.0)}, r"emb_params: .*\(\), expected"),
    "a bundle of nothing known": ({**LORA, "bundle_emb.cat.sideways": L}, "bundle_emb.cat.sideways"),
}


@pytest.mark.parametrize(("tensors", "expected"), REFUSED.values(), ids=REFUSED.keys())
def test_what_makes_no_word_is_named(tmp_path: Path, tensors: dict[str, Tensor], expected: str) -> None:
    path = as_file(tmp_path, tensors)
    with pytest.raises(AdapterFileError, match=expected) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert inspect(path).ok == (expected.endswith("inf")), "only values are not seen in the header"


def test_a_file_that_is_called_nothing_has_no_word(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match="' ' cannot be a word"):
        read(as_file(tmp_path, {"emb_params": L}, stem=" "))


@pytest.mark.parametrize(
    "shapes",
    [{}, {"a": (2,)}, {"a.b": (768,)}, {"a": (1, 2, 768)}, {"a": (768,), "b": (768,)}, {"<a>.x": (768,)}],
)
def test_what_is_no_file_of_words(shapes: dict[str, tuple[int, ...]]) -> None:
    assert not embeddings.standalone(shapes)


def test_tensors_of_words_are_told_from_those_of_modules() -> None:
    found = embeddings.split({f"{K}.alpha": 1, "bundle_emb.x.clip_l": 2, "emb_params": 3, "bundle_emb": 4})
    assert found.words == {"bundle_emb.x.clip_l": 2, "emb_params": 3}
    assert found.others == {f"{K}.alpha": 1, "bundle_emb": 4}


def test_words_are_written_beside_modules_and_read_back(tmp_path: Path) -> None:
    lora = LoRA(torch.randn(2, 4, 1, 1), torch.randn(4, 2, 1, 1), 0.5)
    tokens = {"cat": ONE, "a b.c": {"text_encoder": L.half()}, "<x>": ONE}
    whole = Adapter({"unet.mid_block.attentions.0.proj_in": (lora,)}, AdapterMeta(family="sd1"), tokens)
    write(whole, tmp_path / "whole.safetensors")
    assert same(read(tmp_path / "whole.safetensors"), whole)
    assert "bundle_emb.cat.emb_params" in read_tensors(tmp_path / "whole.safetensors").tensors
    write(whole, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


@pytest.mark.parametrize(("name", "parts"), [("sd1", ONE), ("sdxl", BOTH)])
def test_words_alone_are_written_and_read_back_under_any_name(
    tmp_path: Path, name: str, parts: dict[str, Tensor]
) -> None:
    alone = Adapter({}, AdapterMeta(family=name), {"cat": parts})
    write(alone, tmp_path / "other.safetensors")
    found = read(tmp_path / "other.safetensors")
    assert same(found, alone) and found.meta.family == name


@pytest.mark.parametrize("base", FAMILIES, ids=lambda base: base.name)
def test_what_is_written_for_a_family_is_read_for_it(base: Family) -> None:
    parts = {part.name: torch.ones(2, 8) for part in base.components if part.is_text}
    written = embeddings.leaves({"cat": parts, "clip_g": parts}, base)
    found = embeddings.words(written, stem="x", family=base)
    assert not found.problems and equal(found.tokens, {"cat": parts, "clip_g": parts})
    assert embeddings.family_of(written) == base.name


def test_words_that_cannot_be_written_are_all_named(tmp_path: Path) -> None:
    tokens = {"cat": BOTH, " x": ONE, "y\n": ONE, "z" * 300: ONE, "fine": ONE}
    with pytest.raises(
        AdapterFileError, match=r"(?s)problems: 4.*' x'.*'cat'.*sd1 has no text_encoder_2"
    ) as caught:
        embeddings.leaves(tokens, family("sd1"))
    assert "fine" not in str(caught.value) and "\\n" in str(caught.value)
    with pytest.raises(AdapterFileError, match="diffusers"):
        lora = LoRA(torch.ones(2, 4, 1, 1), torch.ones(4, 2, 1, 1), 1.0)
        held = Adapter(
            {"unet.mid_block.attentions.0.proj_in": (lora,)}, AdapterMeta(family="sd1"), {"cat": ONE}
        )
        write(held, tmp_path / "x.safetensors", format="diffusers")
