"""What a header alone tells is what reading the file finds, whatever was looked at before."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from difflora.adapter import Adapter
from difflora.errors import AdapterFileError
from difflora.families import family
from difflora.formats import inspect, read, write
from difflora.formats.leaves import rank_of
from tests.formats.malformed import CONTENT, K
from tests.formats.malformed import adapter as small
from tests.formats.test_every_kind import adapter_of
from tests.kinds.samples import MAKERS

FOLDER = Path(__file__).parents[1] / "fixtures" / "adapters"
ADAPTERS = sorted(path.name for path in FOLDER.iterdir() if ".delta." not in path.name)


def names(adapter: Adapter) -> dict[str, tuple[str, ...]]:
    """Path -> the names of its kinds."""
    return {path: tuple(kind.name for kind in kinds) for path, kinds in sorted(adapter.modules.items())}


def ranks(adapter: Adapter) -> tuple[int, ...]:
    found = (rank_of(kind.to_leaves()) for kinds in adapter.modules.values() for kind in kinds)
    return tuple(sorted({rank for rank in found if rank is not None}))


def agrees(path: Path) -> bool:
    """Whether `inspect` tells all of an adapter that can be told without its values."""
    report, adapter = inspect(path), read(path)
    told = (report.ok, report.kinds, report.ranks, report.family, report.name, report.trigger, report.words)
    meta = adapter.meta
    found = (names(adapter), ranks(adapter), meta.family, meta.name, meta.trigger, tuple(adapter.tokens))
    return told == (True, *found) and list(report.kinds) == list(found[0])


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_header_tells_what_reading_finds(name: str) -> None:
    assert agrees(FOLDER / name)
    assert inspect(FOLDER / name) == inspect(FOLDER / name)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_of_every_kind(tmp_path: Path, name: str) -> None:
    write(adapter_of(name), tmp_path / "a.safetensors")
    assert agrees(tmp_path / "a.safetensors")


def test_files_of_the_same_names_are_not_taken_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for rank, dtype in ((2, torch.float32), (3, torch.float32), (2, torch.float16), (3, torch.bfloat16)):
        down, up = torch.ones(rank, 4, dtype=dtype), torch.ones(4, rank, dtype=dtype)
        path.write_bytes(small({f"{K}.lora_down.weight": down, f"{K}.lora_up.weight": up}))
        assert agrees(path)
        assert inspect(path).ranks == (rank,)
        path.write_bytes(
            small({f"{K}.lora_down.weight": down, f"{K}.lora_up.weight": torch.ones(4, rank + 1)})
        )
        assert f"rank {rank}" in inspect(path).unmatched[K]


def test_the_same_leaves_make_what_each_format_means_by_them(tmp_path: Path) -> None:
    """A module whose parts are several modules of ours, beside one of equal leaves that is one."""
    path, tensors = tmp_path / "a.safetensors", {}
    for module in ("lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_double_blocks_0_img_mlp_0"):
        tensors[f"{module}.lora_down.weight"] = torch.ones(2, 6)
        tensors[f"{module}.lora_up.weight"] = torch.ones(12, 2)
    safetensors.torch.save_file(tensors, path)
    assert agrees(path)
    block = "transformer.transformer_blocks.0"
    fused = [f"{block}.attn.to_{letter}" for letter in "kqv"]
    assert inspect(path).matched == (*fused, f"{block}.ff.net.0.proj")
    assert family(inspect(path).family).whole_path("lora_unet_double_blocks_0_img_attn_qkv") is None


@pytest.mark.parametrize("name", CONTENT)
def test_what_a_header_shows_to_be_wrong_is_what_reading_is_refused_for(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(CONTENT[name][0])
    report = inspect(path)
    with pytest.raises(AdapterFileError) as refused:
        read(path)
    assert all(reason in str(refused.value) for reason in report.unmatched.values())
    assert report.unmatched == inspect(path).unmatched
