"""What is merged or resized is one change a module, which diffusers and PEFT read whole from the file."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from difflora import Stack, merge, resize
from difflora.adapter import Adapter, AdapterMeta
from difflora.errors import NeedsBase
from difflora.formats import read, write
from difflora.kinds import Bias, Full, Kind, LoHa, LoRA
from tests.algebra.adapters import CONV, LINEAR, POINT, loras, relative
from tests.formats.test_peers import load_into_sd1, load_into_sdxl
from tests.kinds.samples import sample

FIXTURES = Path(__file__).parents[1] / "fixtures"
BLOCK = "unet.down_blocks.1"
SHAPES = {
    "sd1": {
        f"{BLOCK}.attentions.0.transformer_blocks.0.attn1.to_q": (64, 64),
        f"{BLOCK}.attentions.0.proj_in": (64, 64, 1, 1),
        f"{BLOCK}.resnets.0.conv1": (64, 32, 3, 3),
        f"{BLOCK}.resnets.0.conv_shortcut": (64, 32, 1, 1),
        f"{BLOCK}.downsamplers.0.conv": (64, 64, 3, 3),
        "unet.conv_in": (32, 4, 3, 3),
    },
    "sdxl": {
        f"{BLOCK}.attentions.0.transformer_blocks.0.attn1.to_q": (64, 64),
        f"{BLOCK}.attentions.0.proj_in": (64, 64),
        f"{BLOCK}.resnets.0.conv1": (64, 32, 3, 3),
        "unet.up_blocks.1.upsamplers.0.conv": (64, 64, 3, 3),
    },
}
"""Layers of the small UNets that files are loaded into."""


def of(family: str, name: str, seed: int) -> Adapter:
    modules = {path: (sample(name, shape, seed=seed),) for path, shape in SHAPES[family].items()}
    return Adapter(modules, AdapterMeta(name=name, family=family))


def as_peft_reads(adapter: Adapter, file: Path) -> dict[str, Tensor]:
    """Path -> the ΔW that diffusers and PEFT take from a file of the adapter."""
    write(adapter, file, format="diffusers")
    load = load_into_sd1 if adapter.meta.family == "sd1" else load_into_sdxl
    return load(FIXTURES, file)


@pytest.mark.parametrize(
    ("family", "name", "other"),
    [("sd1", "loha", "lora"), ("sd1", "loha", "lokr"), ("sdxl", "loha", "loha"), ("sdxl", "lokr", "lora")],
)
def test_diffusers_takes_the_whole_sum_from_the_file(
    tmp_path: Path, family: str, name: str, other: str
) -> None:
    stack = Stack([(of(family, name, 1), 0.7), (of(family, other, 2), 0.4)])
    merged, report = merge(stack)
    found = as_peft_reads(merged, tmp_path / "a.safetensors")
    assert report.exact and found.keys() == SHAPES[family].keys() == report.ranks.keys()
    for path, delta in found.items():
        wanted = stack.delta(path, torch.zeros(SHAPES[family][path]))
        assert relative(delta, wanted) < 1e-5, path
        assert relative(read(tmp_path / "a.safetensors").delta(path, wanted), wanted) < 1e-5, path


@pytest.mark.parametrize("family", SHAPES)
def test_diffusers_takes_a_resized_loha_with_its_kernels(tmp_path: Path, family: str) -> None:
    small, _ = resize(of(family, "loha", 1), rank=4)
    found = as_peft_reads(small, tmp_path / "a.safetensors")
    assert found.keys() == SHAPES[family].keys()
    for path, delta in found.items():
        assert relative(delta, small.delta(path, torch.zeros(SHAPES[family][path]))) < 1e-5, path


def alone(path: str, *kinds: Kind, family: str = "sd1") -> Adapter:
    return Adapter({path: kinds}, AdapterMeta(family=family))


def test_factors_add_up_to_one_lora() -> None:
    parts = [sample(name, (64, 64), seed=seed) for seed, name in enumerate(("lora", "loha", "lokr", "loha"))]
    (kind,) = merge(Stack([(alone(LINEAR, part), 0.5) for part in parts]))[0].modules[LINEAR]
    assert isinstance(kind, LoRA) and kind.rank == 3 + 3 * 3 + 8 * 3 + 3 * 3
    (kind,) = merge(Stack([(alone(LINEAR, *parts[:2]), 0.5)]))[0].modules[LINEAR]
    assert isinstance(kind, LoRA) and kind.rank == 12


def test_what_has_no_factors_makes_its_module_whole_and_the_report_says_how_large() -> None:
    loha = sample("loha", (12, 12))  # whose 9 terms are no smaller than 12 × 12
    both = Stack([(alone(LINEAR, loha), 0.7), (alone(LINEAR, sample("lora_bias", (12, 12))), 0.4)])
    merged, report = merge(both)
    (kind,) = merged.modules[LINEAR]
    assert isinstance(kind, Full) and kind.bias is not None
    assert relative(kind.diff, both.delta(LINEAR, torch.zeros(12, 12))) < 1e-6
    assert report.exact and report.dense == {LINEAR: 12 * 12 * 4} and not report.ranks
    assert not merge(Stack([(loras(1, 3), 0.5), (loras(2, 3), 0.5)]))[1].dense


def test_what_stands_alone_keeps_its_form_beside_biases() -> None:
    (first, *_), bias = (sample("loha", (64, 64)),), Bias(torch.ones(64))
    merged, _ = merge(Stack([(alone(LINEAR, first), 0.5), (alone(LINEAR, bias), 2.0)]))
    loha, shift = merged.modules[LINEAR]
    assert isinstance(loha, LoHa) and isinstance(shift, Bias) and float(shift.bias[0]) == 2.0


@pytest.mark.parametrize("method", ["add", "magnitude"])
def test_a_whole_convolution_has_its_kernel(method: str) -> None:
    parts = [alone(CONV, sample("loha", (4, 4, 3, 3), seed=seed)) for seed in range(2)]
    (kind,) = merge(Stack([(part, 1.0) for part in parts]), method=method)[0].modules[CONV]
    assert isinstance(kind, Full) and kind.diff.shape == (4, 4, 3, 3)


def test_the_width_of_the_text_tells_a_linear_projection() -> None:
    loha, key = sample("loha", (32, 32)), "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    for width, dimensions in ((768, 4), (1024, 2)):
        modules = {POINT: (loha,), key: (sample("loha", (32, width)),)}
        small, _ = resize(Adapter(modules), rank=2)
        (kind,) = small.modules[POINT]
        assert isinstance(kind, LoRA) and kind.down.ndim == kind.up.ndim == dimensions


def test_a_flat_change_without_a_kernel_asks_for_the_base() -> None:
    odd = sample("loha", (32, 40))
    for call in (
        lambda: resize(alone(CONV, odd), rank=2),
        lambda: merge(Stack([(alone(CONV, odd), 1.0), (alone(CONV, sample("loha", (32, 40), seed=1)), 1.0)])),
    ):
        with pytest.raises(NeedsBase, match=r"conv1: its change is \(32, 40\).*kernel of \(3, 3\)"):
            call()
