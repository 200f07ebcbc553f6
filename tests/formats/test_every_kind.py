"""read(write(x, f)) = x for every kind there is a sample of, every layer and every format that holds it."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from difflora.adapter import Adapter, AdapterMeta, same
from difflora.errors import AdapterFileError
from difflora.formats import inspect, read, write
from difflora.formats.container import read_tensors
from difflora.kinds import Bias, Full, Kind, LoHa, LoRA, Replace
from tests.kinds.samples import LAYER_NAMES, MAKERS, NORM_NAMES, sample

LINEAR = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
LAYERS = {
    LINEAR: (8, 6),
    "unet.mid_block.attentions.0.proj_in": (8, 6, 1, 1),
    "unet.mid_block.resnets.0.conv1": (8, 6, 3, 3),
    "text_encoder.text_model.encoder.layers.0.mlp.fc1": (12, 6),
}
NORM = "unet.mid_block.resnets.0.norm1"
PEFT_KINDS = ("lora", "lora_bias", "dora_out")
WHOLE = ("replace", "replace_bias")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def adapter_of(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Adapter:
    """An adapter of one kind, on every layer that can have it."""
    layers = LAYERS if name in LAYER_NAMES else {}
    norms = {NORM: (8,)} if name in NORM_NAMES else {}
    tucker = "tucker" in name  # of which linear layers have none
    modules = {
        path: (sample(name, shape, dtype, seed + index),)
        for index, (path, shape) in enumerate({**layers, **norms}.items())
        if not tucker or len(shape) == 4
    }
    return Adapter(modules, AdapterMeta("n", "sd1"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MAKERS)
def test_kohya_files_hold_every_kind(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    adapter = adapter_of(name, dtype)
    write(adapter, tmp_path / "a.safetensors")
    held = {path: with_bias_beside(kind) for path, (kind,) in sorted(adapter.modules.items())}
    assert same(read(tmp_path / "a.safetensors"), Adapter(held))
    report = inspect(tmp_path / "a.safetensors")
    assert report.ok
    assert report.kinds == {path: tuple(kind.name for kind in kinds) for path, kinds in held.items()}


def with_bias_beside(kind: Kind) -> tuple[Kind, ...]:
    """The bias of a LoRA is a difference of the layer's in a kohya file."""
    if not isinstance(kind, LoRA) or (bias := kind.bias_delta()) is None:
        return (kind,)
    return replace(kind, bias=None), Bias(bias)


@given(
    name=st.sampled_from(sorted(MAKERS)),
    other=st.sampled_from(sorted(MAKERS)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_two_kinds_on_one_module_are_both_there_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, other: str, dtype: torch.dtype, seed: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "two.safetensors"
    kinds = tuple(sample(each, (8, 6, 3, 3), dtype, seed) for each in (name, other))
    adapter = Adapter({"unet.mid_block.resnets.0.conv1": kinds}, AdapterMeta("n", "sd1"))
    try:
        write(adapter, path)
    except AdapterFileError as error:
        assert f"holds {kinds[0].name}, {kinds[1].name}" in str(error)
        return
    (found,) = read(path).modules.values()
    assert changes(found) == changes(kinds)


def changes(kinds: tuple[Kind, ...]) -> dict[str, bytes]:
    """What a set of kinds is made of, in any order; a full difference holds the bias that is beside it."""
    found = {}
    for one in (one for kind in kinds for one in with_bias_beside(kind)):
        for leaf, tensor in one.to_leaves().items():
            found[leaf] = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("layout", "name"),
    [(layout, name) for layout in ("diffusers", "peft") for name in PEFT_KINDS]
    + [("peft", name) for name in WHOLE],
)
def test_diffusers_and_peft_hold_lora_dora_and_biases(
    tmp_path: Path, layout: str, name: str, dtype: torch.dtype
) -> None:
    adapter = adapter_of(name, dtype)
    write(adapter, tmp_path / "a", format=layout)
    assert same(read(tmp_path / "a"), adapter)
    assert inspect(tmp_path / "a").ok
    assert inspect(tmp_path / "a").format == layout


@pytest.mark.parametrize("layout", ["diffusers", "peft"])
@pytest.mark.parametrize("name", sorted(set(MAKERS) - {*PEFT_KINDS, *WHOLE}))
def test_other_kinds_are_refused_by_name(tmp_path: Path, layout: str, name: str) -> None:
    adapter = adapter_of(name)
    kind = next(iter(adapter.modules.values()))[0].name
    path = next(iter(sorted(adapter.modules)))
    with pytest.raises(
        AdapterFileError, match=rf"{re.escape(path)}: is {kind}(?s:.*)\"kohya\", which holds every"
    ):
        write(adapter, tmp_path / "a", format=layout)
    assert not (tmp_path / "a").exists()


def test_peft_gives_a_magnitude_to_all_modules_or_none(tmp_path: Path) -> None:
    modules = {**adapter_of("lora").modules, LINEAR: (sample("dora_out", (8, 6)),)}
    with pytest.raises(
        AdapterFileError, match=r"has no dora, as 1 of 3 modules of the unet do; expected all or none"
    ):
        write(Adapter(modules, AdapterMeta("n", "sd1")), tmp_path / "a", format="peft")


def test_a_bias_beside_a_full_difference_becomes_part_of_it(tmp_path: Path) -> None:
    full, bias = Full(torch.randn(8, 6)), Bias(torch.randn(8))
    write(Adapter({LINEAR: (full, bias)}, AdapterMeta("n", "sd1")), tmp_path / "a.safetensors")
    ((found,),) = read(tmp_path / "a.safetensors").modules.values()
    assert isinstance(found, Full) and found.bias is not None
    assert torch.equal(found.diff, full.diff) and torch.equal(found.bias, bias.bias)


def test_kinds_with_alphas_of_their_own_cannot_share_a_module(tmp_path: Path) -> None:
    lora, loha = sample("lora", (8, 6)), sample("loha", (8, 6))
    assert isinstance(lora, LoRA) and isinstance(loha, LoHa)
    meta = AdapterMeta("n", "sd1")
    write(Adapter({LINEAR: (lora, loha)}, meta), tmp_path / "a.safetensors")
    assert same(read(tmp_path / "a.safetensors"), Adapter({LINEAR: (lora, loha)}))
    with pytest.raises(AdapterFileError, match="to_q: holds lora, loha: two have alpha"):
        write(Adapter({LINEAR: (lora.times(2.0), loha)}, meta), tmp_path / "a.safetensors")


def test_single_numbers_stay_exact_in_half_precision(tmp_path: Path) -> None:
    adapter = adapter_of("ia3_in")
    write(adapter, tmp_path / "a.safetensors", dtype="bfloat16")
    tensors = read_tensors(tmp_path / "a.safetensors").tensors
    dtypes = {name.partition(".")[2]: tensor.dtype for name, tensor in tensors.items()}
    assert dtypes == {"weight": torch.bfloat16, "on_input": torch.float32}


def test_what_another_dtype_loses_is_reported(tmp_path: Path) -> None:
    adapter = adapter_of("lora")
    assert write(adapter, tmp_path / "a.safetensors", dtype="float32").rounding == 0.0
    half = write(adapter, tmp_path / "a.safetensors", dtype="float16").rounding
    brain = write(adapter, tmp_path / "a.safetensors", dtype="bfloat16").rounding
    assert 1e-5 < half < 1e-3 < brain < 1e-2
    tiny = {LINEAR: (LoRA(torch.ones(2, 6), torch.full((8, 2), 1e-9), scale=1.0),)}
    lost = write(Adapter(tiny, adapter.meta), tmp_path / "a.safetensors", dtype="float16")
    assert lost.rounding == 1.0


def test_replacing_a_bias_alone_is_nothing_that_peft_can_do(tmp_path: Path) -> None:
    adapter = Adapter({LINEAR: (Replace(None, torch.randn(8)),)}, AdapterMeta("n", "sd1"))
    with pytest.raises(AdapterFileError, match="replaces the bias alone"):
        write(adapter, tmp_path / "a", format="peft")
    write(adapter, tmp_path / "a.safetensors")
    assert same(read(tmp_path / "a.safetensors"), adapter)
