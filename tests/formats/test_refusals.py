"""A file that is no adapter, or cannot be applied whole, is refused with all that is wrong with it."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from difflora.adapter import Adapter, AdapterMeta
from difflora.errors import AdapterFileError, ConfigError
from difflora.formats import inspect, read, write
from difflora.formats.container import read_tensors, write_tensors
from difflora.formats.leaves import MAX_ALPHA
from difflora.formats.peft_config import METADATA_KEY
from difflora.kinds import LoRA

K = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
V = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_v"
D = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
SDXL = "lora_unet_input_blocks_7_1_transformer_blocks_9_attn2_to_k"


def pair(module: str = K, *, rank: int = 4, up_rank: int | None = None) -> dict[str, Tensor]:
    return {
        f"{module}.lora_down.weight": torch.randn(rank, 8),
        f"{module}.lora_up.weight": torch.randn(8, up_rank or rank),
    }


def with_alpha(alpha: Tensor) -> dict[str, Tensor]:
    return {**pair(), f"{K}.alpha": alpha}


def only(leaf: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    return {f"{K}.{leaf}": torch.ones(shape)}


# name -> (tensors, what the error says)
REFUSED: dict[str, tuple[dict[str, Tensor], str]] = {
    "down_without_up": (
        only("lora_down.weight", (4, 8)),
        f"{K}: lora_up.weight missing beside lora_down.weight",
    ),
    "up_without_down": (
        only("lora_up.weight", (8, 4)),
        f"{K}: lora_down.weight missing beside lora_up.weight",
    ),
    "alpha_alone": (
        {**pair(V), **only("alpha", ())},
        f"{K}: alpha: no kind of change has this and nothing else",
    ),
    "ranks_differ": (
        pair(rank=4, up_rank=5),
        rf"{K}: down is \(4, 8\) of rank 4, but up is \(8, 5\) of rank 5",
    ),
    "one_dimension": (
        {**pair(), f"{K}.lora_down.weight": torch.ones(4)},
        rf"{K}: down is \(4,\)",
    ),
    "three_dimensions": (
        {**pair(), f"{K}.lora_down.weight": torch.ones(4, 8, 3)},
        rf"{K}: down is \(4, 8, 3\)",
    ),
    "up_with_a_kernel": (
        {f"{K}.lora_down.weight": torch.ones(4, 8, 3, 3), f"{K}.lora_up.weight": torch.ones(8, 4, 3, 3)},
        rf"{K}: up is \(8, 4, 3, 3\); expected \(out, rank, 1, 1\)",
    ),
    "int8_factor": (
        {**pair(), f"{K}.lora_up.weight": torch.ones(8, 4, dtype=torch.int8)},
        f"{K}: lora_up.weight is int8, expected float32, float16 or bfloat16",
    ),
    "bool_factor": (
        {**pair(), f"{K}.lora_up.weight": torch.ones(8, 4, dtype=torch.bool)},
        f"{K}: lora_up.weight is bool",
    ),
    "nan_factor": (
        {**pair(), f"{K}.lora_up.weight": torch.full((8, 4), float("nan"))},
        f"{K}.lora_up.weight: 32 of 32 values are NaN or infinite",
    ),
    "infinite_factor": (
        {**pair(), f"{K}.lora_down.weight": torch.full((4, 8), float("-inf"), dtype=torch.float16)},
        f"{K}.lora_down.weight: 32 of 32 values",
    ),
    "alpha_is_nan": (with_alpha(torch.tensor(float("nan"))), f"{K}: alpha is nan"),
    "alpha_is_1e30": (with_alpha(torch.tensor(1e30)), rf"{K}: alpha is 1.*e\+30, expected a number up to"),
    "alpha_is_a_vector": (with_alpha(torch.ones(2)), rf"{K}: alpha has the shape \(2,\)"),
    "unknown_leaf": (
        {**pair(), f"{K}.lora_sideways": torch.ones(2)},
        f"{K}.lora_sideways: is no tensor that",
    ),
    "unknown_module": (
        {**pair(), **pair("lora_unet_mid_block_attentions_0_nonsense")},
        "lora_unet_mid_block_attentions_0_nonsense: sd1 .* has no such module",
    ),
    "name_of_a_file": ({**pair(), "../../etc/passwd": torch.ones(2)}, "../../etc/passwd: is no tensor"),
    "html_name": ({**pair(), "<script>": torch.ones(2)}, "<script>: is no tensor"),
    "foreign_text_encoder": ({**pair(), **pair("lora_te3_encoder_block_0")}, "lora_te3_encoder_block_0: sd1"),
    "both_formats": (
        {**pair(), f"{D}.lora_A.weight": torch.ones(4, 8), f"{D}.lora_B.weight": torch.ones(8, 4)},
        f"{D}.lora_A.weight: is no tensor that a kohya file has",
    ),
    "two_names_of_one_module": (
        {**pair(SDXL), **pair("lora_unet_down_blocks_2_attentions_0_transformer_blocks_9_attn2_to_k")},
        "is the same factor of unet.down_blocks.2.attentions.0.transformer_blocks.9.attn2.to_k as",
    ),
    "two_spellings_of_one_factor": (
        {**pair(), f"{K}.lora_A.weight": torch.ones(4, 8)},
        "is the same factor of unet.mid_block",
    ),
    "base_model": ({"model.diffusion_model.out.2.weight": torch.ones(2, 2)}, "it is a base model"),
    "peft_folder": (
        {"base_model.model.mid_block.attentions.0.proj_in.lora_A.weight": torch.ones(2, 2)},
        "PEFT folder, whose scales are in another file, adapter_config.json",
    ),
    "something_else": (
        {"layer.0.weight": torch.ones(2, 2)},
        "first being layer.0.weight. Expected one of: kohya file, PEFT folder, clone",
    ),
    "cascade": (
        {"lora_prior_unet_down_blocks_0_0_attention.lora_down.weight": torch.ones(4, 4)},
        "looks like an adapter for Stable Cascade; supported: sd1 .*, sdxl",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_applied_whole_is_refused(tmp_path: Path, name: str) -> None:
    tensors, expected = REFUSED[name]
    path = tmp_path / f"{name}.safetensors"
    write_tensors(path, tensors)
    with pytest.raises(AdapterFileError, match=expected) as caught:
        read(path)
    assert str(path) in str(caught.value)


# What only the values tell, which a look at the header does not see.
IN_THE_VALUES = {"nan_factor", "infinite_factor", "alpha_is_nan", "alpha_is_1e30"}


@pytest.mark.parametrize("name", REFUSED)
def test_a_look_at_the_header_finds_the_same(tmp_path: Path, name: str) -> None:
    tensors, expected = REFUSED[name]
    path = tmp_path / f"{name}.safetensors"
    write_tensors(path, tensors)
    report = inspect(path)
    assert report.ok == (name in IN_THE_VALUES)
    if not report.ok:
        lines = [report.problem, *(f"{where}: {reason}" for where, reason in report.unmatched.items())]
        assert re.search(expected, "\n".join(lines))


T_LORA = ("q_layer.weight", "p_layer.weight", "lambda_layer", "base_q", "base_p", "base_lambda")

# leaves that are known, and why they are refused
UNREADABLE: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "t_lora": (dict.fromkeys(T_LORA, (4, 8)), "base_lambda is part of a T-LoRA, whose rank changes"),
    "sparse": (
        {"lora_down.weight": (4, 8), "lora_up.weight": (8, 4), "bias_values": (3,)},
        "only bias_values of its remainder is there",
    ),
    "reshape": ({"reshape_weight": (2,)}, "reshape_weight enlarges a layer of the base"),
    "oft_in_parts": (
        {**{f"oft_blocks.{part}": (2, 4, 4) for part in range(3)}, "alpha": ()},
        "oft_blocks.0 is one part of a module in kohya's OFT for Flux",
    ),
    "embedding": ({"lora_embedding_A": (4, 8), "lora_embedding_B": (8, 4)}, "is LoRA on an embedding"),
    "dora_alone": ({"dora_scale": (8, 1)}, "dora_scale without the factors of a LoRA, LoHa or LoKr"),
    **{
        f"{leaf}_of_{len(shape)}_dimensions": (
            {"lora_down.weight": (4, 8), "lora_up.weight": (8, 4), leaf: shape},
            rf"{leaf} is \({'1,' * len(shape)}\); expected the norm of every output row, \(out,\)",
        )
        for leaf in ("magnitude", "dora_scale")
        for shape in ((), (1,))
    },
    "half_a_loha": ({"hada_w1_a": (8, 4), "hada_w1_b": (4, 8)}, "hada_w2_a and hada_w2_b missing"),
    "half_an_ia3": ({"weight": (8,)}, "weight: no kind of change has this and nothing else"),
    "more_than_a_kind": (
        {"diff": (8, 8), "rescale": (8, 1)},
        "rescale: no kind of change has this and nothing else",
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_leaves_that_make_no_kind_are_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.safetensors"
    leaves, expected = UNREADABLE[name]
    write_tensors(path, pair(V) | {f"{K}.{leaf}": torch.ones(shape) for leaf, shape in leaves.items()})
    with pytest.raises(AdapterFileError, match=f"{K}: .*{expected}"):
        read(path)
    report = inspect(path)
    assert report.unmatched.keys() == {K} and re.search(expected, report.unmatched[K])
    assert list(report.kinds.values()) == [("lora",)]


def test_every_problem_is_in_the_one_error(tmp_path: Path) -> None:
    tensors = {**pair(up_rank=5), **pair("lora_unet_nonsense"), "odd": torch.ones(1)}
    tensors |= {f"{V}.lora_down.weight": torch.full((4, 8), float("inf"))}
    write_tensors(tmp_path / "a.safetensors", tensors)
    with pytest.raises(AdapterFileError) as caught:
        read(tmp_path / "a.safetensors")
    for expected in (
        "problems: 5",
        "odd: is no",
        "lora_unet_nonsense: sd1",
        f"{K}: down is",
        f"{V}: lora_up.weight missing",
        "infinite",
    ):
        assert expected in str(caught.value)


def test_an_adapter_for_another_family_is_recognised(fixtures: Path) -> None:
    path = fixtures / "adapters" / "kohya_sdxl_diffnames_lora.safetensors"
    with pytest.raises(
        AdapterFileError, match=r"(?s)sd1.*has no such module.*looks like an adapter for sdxl"
    ):
        read(path, family="sd1")
    with pytest.raises(ConfigError, match="no family"):
        read(path, family="sd9")


def configured(**config: object) -> Callable[[Path], None]:
    """A writer of a diffusers file with one module and this configuration for the UNet."""

    def write(path: Path) -> None:
        tensors = {f"{D}.lora_A.weight": torch.ones(4, 8), f"{D}.lora_B.weight": torch.ones(8, 4)}
        text = json.dumps({f"unet.{key}": value for key, value in config.items()})
        write_tensors(path, tensors, {METADATA_KEY: text})

    return write


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 2}, 0.5),
        ({"lora_alpha": 2, "use_rslora": True}, 1.0),
        ({"r": 4}, 2.0),  # PEFT's default alpha of 8
        ({"lora_alpha": 2, "alpha_pattern": {"to_q": 1}}, 0.25),
        ({"lora_alpha": 2, "alpha_pattern": {"o_q": 1, "to_q": 2}}, 0.5),
        ({"lora_alpha": 2, "alpha_pattern": {"^to_q": 1, "to_q": 2}}, 0.5),
        ({"lora_alpha": 2, "alpha_pattern": {"attn1.to_q": 1, "to_q": 3}}, 0.25),
        ({"lora_alpha": 2, "alpha_pattern": {"to_q": 3, "attn1.to_q": 1}}, 0.75),
        ({"lora_alpha": 2, "alpha_pattern": {"^mid_block\\.attentions\\.0\\..*to_q$": 1}}, 0.25),
        ({"lora_alpha": 2, "alpha_pattern": {"(attn1|attn2).to_q": 1}}, 0.25),
        ({"lora_alpha": 2, "alpha_pattern": {"attn[12].to_k": 1, "to_q": 2}}, 0.5),
    ],
)
def test_scales_of_peft_configurations(tmp_path: Path, config: dict[str, object], scale: float) -> None:
    configured(**config)(tmp_path / "a.safetensors")
    ((lora,),) = read(tmp_path / "a.safetensors").modules.values()
    assert lora.tensors()["scale"] == scale


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"lora_alpha": "2"}, "unet.lora_alpha is 2, expected a number"),
        ({"lora_alpha": float("nan")}, "unet.lora_alpha is nan"),
        ({"alpha_pattern": ["to_q"]}, "unet.alpha_pattern is not a JSON object"),
        ({"alpha_pattern": {"to_q": None}}, "to_q is None"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "too involved"),
        ({"alpha_pattern": {"(": 1}}, "no regular expression"),
        ({"alpha_pattern": {f"x{n}|y": 1 for n in range(33)}}, "33 expressions"),
        ({"lora_alpha": 10**400}, "unet.lora_alpha is 1000.*, expected a number up to 1e"),
        ({"alpha_pattern": {"to_q": 10**400}}, "unet.alpha_pattern: to_q is 1000"),
        ({"lora_alpha": 1e300}, r"unet.lora_alpha is 1e\+300, expected a number up to 1e"),
        ({"alpha_pattern": {"to_q": -1e300}}, r"unet.alpha_pattern: to_q is -1e\+300"),
        ({"r": -1, "use_rslora": True}, "unet.r is -1, expected a rank of 1 or more"),
        ({"r": 0}, "unet.r is 0, expected a rank"),
        ({"rank_pattern": {"to_q": 0}}, "unet.rank_pattern: to_q is 0, expected a rank"),
        ({"r": 10**400}, "unet.r is 1000"),
    ],
)
def test_configurations_that_cannot_be_trusted_are_refused(
    tmp_path: Path, config: dict[str, object], expected: str
) -> None:
    configured(**config)(tmp_path / "a.safetensors")
    with pytest.raises(AdapterFileError, match=expected):
        read(tmp_path / "a.safetensors")
    assert not inspect(tmp_path / "a.safetensors").ok


def test_a_deeply_nested_setting_is_no_crash(tmp_path: Path) -> None:
    """Wherever the stack runs out: while it is parsed, or while it is quoted."""
    path = tmp_path / "a.safetensors"
    tensors = {f"{D}.lora_A.weight": torch.ones(4, 8), f"{D}.lora_B.weight": torch.ones(8, 4)}
    for depth in range(700, 1010, 5):
        config = f'{{"unet.kasa_config": {"[" * depth}1{"]" * depth}}}'
        write_tensors(path, tensors, {METADATA_KEY: config})
        assert "what it says of itself cannot be used" in inspect(path).problem


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "peft"])
@pytest.mark.parametrize("scale", [1e9, -1e9, 1e300, float("nan")])
def test_what_reading_would_refuse_is_not_written(tmp_path: Path, layout: str, scale: float) -> None:
    lora = LoRA(torch.ones(2, 8), torch.ones(8, 2), scale=scale)
    with pytest.raises(AdapterFileError, match=f"{D}: alpha is .*, expected a number up to 1e"):
        write(Adapter({D: (lora,)}, AdapterMeta("n", "sd1")), tmp_path / "out", format=layout)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "peft"])
def test_the_largest_alpha_that_is_written_is_read(tmp_path: Path, layout: str) -> None:
    lora = LoRA(torch.ones(2, 8), torch.ones(8, 2), scale=MAX_ALPHA / 2)
    path = tmp_path / "out.safetensors"
    write(Adapter({D: (lora,)}, AdapterMeta("n", "sd1")), path, format=layout)
    assert inspect(path).ok
    assert read(path).modules[D][0].tensors()["scale"] == MAX_ALPHA / 2


def test_a_configuration_that_is_no_json_is_refused(tmp_path: Path, fixtures: Path) -> None:
    source = read_tensors(fixtures / "adapters" / "diff_sd15_peft" / "pytorch_lora_weights.safetensors")
    for text in ("{", "[]", "[" * 100_000):
        write_tensors(tmp_path / "a.safetensors", source.tensors, {METADATA_KEY: text})
        with pytest.raises(AdapterFileError, match="what it says of itself cannot be used"):
            read(tmp_path / "a.safetensors")


def test_the_same_module_names_of_two_families_are_told_apart(tmp_path: Path) -> None:
    module = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"

    def family(width: int, metadata: dict[str, str]) -> str:
        tensors = {
            f"{module}.lora_down.weight": torch.ones(2, width),
            f"{module}.lora_up.weight": torch.ones(8, 2),
        }
        write_tensors(tmp_path / "a.safetensors", tensors, metadata)
        return read(tmp_path / "a.safetensors").meta.family

    sdxl = {"ss_base_model_version": "sdxl_base_v1-0"}
    assert [family(width, {}) for width in (768, 1024, 2048, 64)] == ["sd1", "sd1", "sdxl", "sd1"]
    assert family(64, sdxl) == "sdxl"
    assert family(64, {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}) == "sdxl"
    assert family(768, sdxl) == "sd1", "shapes count for more than what a file says about itself"
