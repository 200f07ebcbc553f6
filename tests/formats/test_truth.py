"""Files that other projects wrote give the ΔW that those projects compute, module by module."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from difflora.adapter import same
from difflora.families import family
from difflora.formats import inspect, read, write

# file -> the number of modules of each kind
FILES = {
    "kohya_sd15_lora": {"lora": 204},
    "kohya_sd15_locon": {"lora": 289},
    "kohya_sdxl_diffnames_lora": {"lora": 266},
    "lyco_sd15_locon": {"lora": 293},
    "lyco_sd15_locon_tucker": {"lora": 293},
    "lyco_sd15_loha": {"loha": 293},
    "lyco_sd15_lokr": {"lokr": 293},
    "lyco_sd15_lokr_full": {"lokr": 293},
    "lyco_sd15_dora_out": {"dora": 293},
    "lyco_sd15_glora": {"glora": 293},
    "lyco_sd15_ia3": {"ia3": 106},
    "lyco_sd15_diagoft": {"oft": 293},
    "lyco_sd15_norm": {"lora": 293, "norm": 108},
}

# The truth is the difference of two float32 weights, of which each is rounded.
ROUNDING = 2 * torch.finfo(torch.float32).eps


@pytest.fixture(scope="module")
def weights(fixtures: Path) -> dict[str, torch.Tensor]:
    """Path -> the weight of a module of the base on which the peers computed."""
    stored = safetensors.torch.load_file(fixtures / "base" / "sd1_weights.safetensors")
    return {name.removesuffix(".weight"): tensor for name, tensor in stored.items()}


@pytest.mark.parametrize("name", FILES)
def test_delta_is_the_peers_truth(fixtures: Path, weights: dict[str, torch.Tensor], name: str) -> None:
    adapter = read(fixtures / "adapters" / f"{name}.safetensors")
    assert adapter.meta.family == ("sdxl" if "sdxl" in name else "sd1")
    truth = safetensors.torch.load_file(fixtures / "adapters" / f"{name}.delta.safetensors")
    assert len(truth) >= 13
    for module, expected in truth.items():
        (path,) = family(adapter.meta.family).paths_of(module)
        weight = weights[path] if path in weights else torch.zeros_like(expected)
        found = adapter.delta(path, weight)
        bound = 1e-5 * expected.norm() + ROUNDING * weight.norm()
        assert found.shape == expected.shape and expected.norm() > 0
        assert (found - expected).norm() <= bound, module


@pytest.mark.parametrize("name", FILES)
def test_the_header_alone_tells_the_kinds(fixtures: Path, name: str) -> None:
    report = inspect(fixtures / "adapters" / f"{name}.safetensors")
    assert report.ok
    assert report.kind_counts == FILES[name]


@pytest.mark.parametrize("name", FILES)
def test_what_peers_wrote_is_written_back_as_it_was(fixtures: Path, tmp_path: Path, name: str) -> None:
    adapter = read(fixtures / "adapters" / f"{name}.safetensors")
    write(adapter, tmp_path / "a.safetensors")
    assert same(read(tmp_path / "a.safetensors"), adapter)
