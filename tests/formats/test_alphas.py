"""Modules of different scales and ranks act as they should in every reader, diffusers too, whose reader of
kohya files gives modules of attention and of text encoders the alpha that most modules have."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from difflora.adapter import Adapter, AdapterMeta, same
from difflora.algebra import resize
from difflora.formats import hashes, read, write
from difflora.formats.container import read_tensors
from difflora.kinds import DoRA, Kind, LoRA
from tests.formats.test_peers import assert_equal_deltas, load_into_sd1, load_into_sdxl
from tests.kinds.samples import sample

ATTENTION = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_"
TO_Q, TO_K, TO_V, TO_OUT = (f"{ATTENTION}{name}" for name in ("q", "k", "v", "out.0"))
CONV = "unet.mid_block.resnets.0.conv1"
META = AdapterMeta("n", "sd1")


def mixed(source: Adapter, *, dtype: torch.dtype = torch.float32) -> Adapter:
    """The same modules with ranks of 2 to 4 and scales of any size and sign, so that few alphas are equal."""
    modules: dict[str, tuple[LoRA]] = {}
    for number, (path, (lora,)) in enumerate(sorted(source.modules.items())):
        assert isinstance(lora, LoRA)
        rank, scale = 2 + number % 3, (1.0, 0.7, -1.25, 1.0, 3.0)[number % 5]
        down, up = lora.down[:rank].to(dtype), lora.up[:, :rank].to(dtype)
        modules[path] = (LoRA(down.contiguous(), up.contiguous(), scale),)
    return Adapter(modules, source.meta)


def alphas(path: Path) -> list[float]:
    return [float(tensor) for name, tensor in read_tensors(path).tensors.items() if name.endswith(".alpha")]


def assert_close(found: Adapter, expected: Adapter, bound: float) -> None:
    assert found.modules.keys() == expected.modules.keys()
    for path in expected.modules:
        wanted = expected.delta(path)
        assert (found.delta(path) - wanted).norm() <= bound * wanted.norm(), path


def test_diffusers_reads_modules_of_different_alphas_in_sd15(fixtures: Path, tmp_path: Path) -> None:
    adapter = mixed(read(fixtures / "adapters" / "kohya_sd15_locon.safetensors"))
    write(adapter, tmp_path / "a.safetensors")
    assert_equal_deltas(adapter, load_into_sd1(fixtures, tmp_path / "a.safetensors"))
    assert_close(read(tmp_path / "a.safetensors"), adapter, 1e-6)


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_diffusers_reads_what_resizing_makes_of_each_module(
    fixtures: Path, tmp_path: Path, layout: str
) -> None:
    """A rank of its own for each, and alpha = rank."""
    source = read(fixtures / "adapters" / "kohya_sd15_locon.safetensors")
    adapter, _ = resize(source, energy=0.6)
    assert len({lora.rank for (lora,) in adapter.modules.values() if isinstance(lora, LoRA)}) > 1
    write(adapter, tmp_path / "a.safetensors", format=layout)
    assert_equal_deltas(adapter, load_into_sd1(fixtures, tmp_path / "a.safetensors"))


def test_an_alpha_of_its_own_for_convolutions_is_found_unless_most_have_it(
    fixtures: Path, tmp_path: Path
) -> None:
    """kohya's LoCon is written back as it was; without most of its attention it cannot be."""
    source = read(fixtures / "adapters" / "kohya_sd15_locon.safetensors")
    write(source, tmp_path / "a.safetensors")
    assert same(read(tmp_path / "a.safetensors"), source)
    assert_equal_deltas(source, load_into_sd1(fixtures, tmp_path / "a.safetensors"))
    few = {path for path in source.modules if path.endswith("attn2.to_v")}
    convs = {path for path, (kind,) in source.modules.items() if isinstance(kind, LoRA) and kind.rank == 2}
    assert len(convs) > len(few) > 0
    chosen = Adapter({path: source.modules[path] for path in sorted(few | convs)}, source.meta)
    write(chosen, tmp_path / "b.safetensors")
    assert set(alphas(tmp_path / "b.safetensors")) == {2.0}
    assert_equal_deltas(chosen, load_into_sd1(fixtures, tmp_path / "b.safetensors"))


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_diffusers_reads_modules_of_different_alphas_in_sdxl(
    fixtures: Path, tmp_path: Path, layout: str
) -> None:
    adapter = mixed(read(fixtures / "adapters" / "kohya_sdxl_diffnames_lora.safetensors"))
    write(adapter, tmp_path / "a.safetensors", format=layout)
    assert_equal_deltas(adapter, load_into_sdxl(fixtures, tmp_path / "a.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_factors_keep_their_dtype_and_are_rounded_once(
    fixtures: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    adapter = mixed(read(fixtures / "adapters" / "kohya_sd15_lora.safetensors"), dtype=dtype)
    written = write(adapter, tmp_path / "a.safetensors")
    found = read(tmp_path / "a.safetensors")
    unit = torch.finfo(dtype).eps / 2
    assert 0 < written.rounding <= unit
    assert_close(found, adapter, unit)
    for (lora,) in found.modules.values():
        assert isinstance(lora, LoRA) and lora.down.dtype == lora.up.dtype == dtype
    again = write(found, tmp_path / "again.safetensors")
    assert again.rounding == 0 and same(read(tmp_path / "again.safetensors"), found), "its alphas are equal"


def lora(rank: int, alpha: float, *, size: float = 0.1) -> LoRA:
    return LoRA(size * torch.randn(rank, 6), size * torch.randn(8, rank), alpha / rank)


def test_a_file_of_one_alpha_keeps_its_numbers_whatever_its_ranks(tmp_path: Path) -> None:
    adapter = Adapter({TO_Q: (lora(3, 2.0),), TO_K: (lora(4, 2.0),)}, META)
    write(adapter, tmp_path / "a.safetensors")
    assert same(read(tmp_path / "a.safetensors"), adapter)


def test_only_modules_of_another_alpha_get_other_numbers(tmp_path: Path) -> None:
    kept = {TO_Q: (lora(4, 4.0),), TO_K: (lora(4, 4.0),)}
    adapter = Adapter({**kept, TO_V: (lora(2, 1.0),)}, META)
    write(adapter, tmp_path / "a.safetensors")
    found = read(tmp_path / "a.safetensors")
    assert alphas(tmp_path / "a.safetensors") == [4.0] * 3
    assert same(Adapter({path: found.modules[path] for path in kept}), Adapter(kept))
    assert_close(found, adapter, 1e-6)
    facts = found.meta.training
    assert (facts["ss_network_alpha"], facts["ss_network_dim"]) == ("4.0", "Dynamic")


def test_large_factors_do_not_leave_the_range_of_half_precision(tmp_path: Path) -> None:
    """Times 4096 in up alone they would be 8e5, over 4096 in down alone below the least normal number."""
    adapter = Adapter(
        {
            TO_Q: (lora(2, 1.0, size=3.0),),
            TO_K: (lora(2, 1.0, size=3.0),),
            TO_V: (lora(2, 4096.0, size=60.0),),
            TO_OUT: (LoRA(torch.full((2, 6), 0.003), torch.full((8, 2), 0.003), 2.0**-13),),
        },
        META,
    )
    written = write(adapter, tmp_path / "a.safetensors", dtype="float16")
    assert written.rounding <= 1e-3
    assert_close(read(tmp_path / "a.safetensors"), adapter, 2e-3)


def test_scales_of_zero_and_gains_are_kept(tmp_path: Path) -> None:
    off, weighted = replace(lora(2, 2.0), scale=0.0), replace(lora(2, 3.0), gains=torch.tensor([2.0, -0.5]))
    adapter = Adapter({TO_Q: (lora(4, 4.0),), TO_K: (off,), TO_V: (weighted,)}, META)
    write(adapter, tmp_path / "a.safetensors")
    found = read(tmp_path / "a.safetensors")
    assert torch.equal(found.delta(TO_K), torch.zeros(8, 6))
    assert_close(found, adapter, 1e-6)
    nothing = Adapter({TO_Q: (off,), TO_K: (replace(off, down=off.down[:1], up=off.up[:, :1]),)}, META)
    write(nothing, tmp_path / "a.safetensors")
    assert same(read(tmp_path / "a.safetensors"), nothing)
    conv = LoRA(torch.randn(2, 6, 3, 3), torch.randn(8, 2, 1, 1), 1.0)
    write(Adapter({TO_Q: (off,), CONV: (conv,)}, META), tmp_path / "a.safetensors")
    assert alphas(tmp_path / "a.safetensors") == [2.0, 2.0], (
        "diffusers takes that of the convolution for both"
    )
    assert not read(tmp_path / "a.safetensors").delta(TO_Q).any()


def test_dora_and_biases_follow_the_factors(tmp_path: Path) -> None:
    dora, biased = sample("dora_out", (8, 6)), sample("lora_bias", (8, 6))
    assert isinstance(dora, DoRA) and isinstance(dora.inner, LoRA) and isinstance(biased, LoRA)
    other = replace(dora, inner=replace(dora.inner, scale=0.3))
    base, bias = torch.randn(8, 6), torch.randn(8)
    for first, second in ((dora, other), (biased, replace(biased, scale=0.3))):
        write(Adapter({TO_Q: (first,), TO_K: (second,)}, META), tmp_path / "a.safetensors")
        assert len(set(alphas(tmp_path / "a.safetensors"))) == 1
        found = read(tmp_path / "a.safetensors").modules
        for path, kind in ((TO_Q, first), (TO_K, second)):
            assert torch.allclose(delta(found[path], base), kind.delta(base), atol=1e-6)
            wanted = kind.bias_delta(bias)
            assert wanted is None or torch.allclose(bias_delta(found[path], bias), wanted, rtol=1e-6)


def delta(kinds: tuple[Kind, ...], base: Tensor) -> Tensor:
    return sum((kind.delta(base) for kind in kinds), start=torch.zeros_like(base))


def bias_delta(kinds: tuple[Kind, ...], bias: Tensor) -> Tensor:
    changes = [kind.bias_delta(bias) for kind in kinds]
    return sum((one for one in changes if one is not None), start=torch.zeros_like(bias))


def test_what_no_reader_mistakes_keeps_its_alphas(tmp_path: Path) -> None:
    """diffusers takes no file with a LoHa in it, and reads each alpha of a Flux file."""
    loha = sample("loha", (8, 6))
    other = Adapter({TO_Q: (lora(4, 4.0),), TO_K: (lora(2, 1.0),), TO_V: (loha,)}, META)
    write(other, tmp_path / "a.safetensors")
    assert same(read(tmp_path / "a.safetensors"), other)
    block = "transformer.transformer_blocks.0.attn.to_"
    flux = {f"{block}out.0": (lora(4, 4.0),), f"{block}add_out": (lora(2, 1.0),)}
    write(Adapter(flux, AdapterMeta("n", "flux")), tmp_path / "a.safetensors")
    assert same(read(tmp_path / "a.safetensors"), Adapter(flux))


def ramp(*shape: int) -> Tensor:
    count = math.prod(shape)
    return (torch.arange(count) / count - 0.5).reshape(shape)


def test_files_of_one_alpha_and_one_rank_are_byte_for_byte_what_they_were(tmp_path: Path) -> None:
    """The hash of the file that was written before alphas were evened out."""
    shapes: Mapping[str, tuple[int, ...]] = {TO_Q: (6,), TO_K: (6,), CONV: (6, 3, 3)}
    modules = {
        path: (LoRA(ramp(4, *rest), ramp(8, 4, *(1,) * (len(rest) - 1)), 0.5),)
        for path, rest in shapes.items()
    }
    write(Adapter(modules, META), tmp_path / "a.safetensors", dtype="float16")
    expected = "7246b8ca85d5e98ffbb5f6f7ced9feb56f134bf30159292b4c18b75604f42ad8"
    assert hashes(tmp_path / "a.safetensors").sha256 == expected
