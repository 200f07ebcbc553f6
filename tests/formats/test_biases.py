"""The bias of PEFT's up factor is a difference of the layer's bias in a kohya file, which others read."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from difflora.adapter import Adapter, AdapterMeta
from difflora.errors import AdapterFileError
from difflora.formats import read, write
from difflora.formats.container import read_tensors
from difflora.kinds import Bias, DoRA, LoRA, Norm
from tests.formats.test_alphas import META, TO_K, TO_Q, bias_delta, delta
from tests.kinds.samples import sample

CONV = "unet.mid_block.resnets.0.conv1"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_bias_of_peft_is_a_difference_that_others_read(tmp_path: Path, dtype: torch.dtype) -> None:
    """ComfyUI drops a lora_up.bias, and takes a diff_b beside any kind."""
    biased, plain = sample("lora_bias", (8, 6), dtype), sample("dora_out", (8, 6), dtype)
    assert isinstance(biased, LoRA) and isinstance(plain, DoRA) and isinstance(plain.inner, LoRA)
    dora = replace(plain, inner=replace(plain.inner, bias=biased.bias))
    adapter = Adapter({TO_Q: (biased,), TO_K: (dora,)}, META)
    write(adapter, tmp_path / "a.safetensors")
    leaves = {name.partition(".")[2] for name in read_tensors(tmp_path / "a.safetensors").tensors}
    assert "diff_b" in leaves and "lora_up.bias" not in leaves
    base, bias = torch.randn(8, 6), torch.randn(8)
    found = read(tmp_path / "a.safetensors").modules
    for path, (kind,) in adapter.modules.items():
        wanted = kind.bias_delta(bias)
        assert wanted is not None and torch.equal(bias_delta(found[path], bias), wanted)
        assert torch.equal(delta(found[path], base), kind.delta(base))
        assert [type(one) for one in found[path]] == [type(kind), Bias]


@pytest.mark.parametrize("name", ["lora_bias", "dora_out"])
def test_a_bias_finds_its_way_back_to_peft(tmp_path: Path, name: str) -> None:
    kind = sample(name, (8, 6, 3, 3))
    if isinstance(kind, DoRA) and isinstance(kind.inner, LoRA):
        kind = replace(kind, inner=replace(kind.inner, bias=torch.randn(8)))
    write(Adapter({CONV: (kind,)}, META), tmp_path / "a.safetensors")
    write(read(tmp_path / "a.safetensors"), tmp_path / "b", format="peft")
    ((found,),) = read(tmp_path / "b").modules.values()
    base, bias = torch.randn(8, 6, 3, 3), torch.randn(8)
    assert torch.equal(found.delta(base), kind.delta(base))
    ours, theirs = found.bias_delta(bias), kind.bias_delta(bias)
    assert ours is not None and theirs is not None and torch.allclose(ours, theirs, rtol=1e-6)


def test_a_bias_beside_nothing_has_no_place_in_peft(tmp_path: Path) -> None:
    lora = sample("lora", (8, 6))
    assert isinstance(lora, LoRA)
    adapter = Adapter({TO_Q: (replace(lora, scale=0.0), Bias(torch.ones(8)))}, META)
    with pytest.raises(AdapterFileError, match="holds lora, bias, expected one lora or dora"):
        write(adapter, tmp_path / "c", format="peft")


def test_other_kinds_beside_it_are_still_told_apart(tmp_path: Path) -> None:
    biased, loha = sample("lora_bias", (8, 6)), sample("loha", (8, 6))
    assert isinstance(biased, LoRA)
    write(Adapter({TO_Q: (biased, loha)}, AdapterMeta("n", "sd1")), tmp_path / "a.safetensors")
    found = read(tmp_path / "a.safetensors").modules[TO_Q]
    assert [kind.name for kind in found] == ["lora", "loha", "bias"]
    with pytest.raises(AdapterFileError, match="two have diff_b"):
        write(Adapter({TO_Q: (biased, Bias(torch.ones(8)))}, META), tmp_path / "b.safetensors")
    norm = Norm(torch.ones(8))
    write(Adapter({TO_Q: (biased, norm)}, META), tmp_path / "c.safetensors")
    assert len(read(tmp_path / "c.safetensors").modules[TO_Q]) == 3
