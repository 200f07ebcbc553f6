"""Kinds that need the base weight, on modules that a file holds in one: cut where it can be, or refused."""

from pathlib import Path

import pytest
import torch

from difflora.adapter import Adapter, same
from difflora.errors import AdapterError, AdapterFileError
from difflora.families.fused import kohya_modules, split
from difflora.formats import inspect, read
from difflora.formats.container import write_tensors
from difflora.kinds import BOFT, OFT, DoRA, Kind, LoKr, ReadyOFT
from tests.families.test_fused import FINAL, FLUX, QKV, H, read_again
from tests.kinds.samples import LAYER_NAMES, sample


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (OFT(torch.zeros(4, 9, 9)), "oft: .* rows 0 to 12 .* it turns rows in blocks of 9, which do not end"),
        (ReadyOFT(torch.eye(9).expand(4, 9, 9)), "oft_diag: .* it turns rows in blocks of 9"),
        (BOFT(torch.zeros(1, 2, 18, 18)), "boft: .* it mixes rows in spans of 18, which do not end"),
        (BOFT(torch.zeros(2, 2, 6, 6)), "boft: .* it mixes rows in spans of 12, which do not end"),
        (
            DoRA(LoKr(w1=torch.ones(4, 2), w2=torch.ones(9, 6)), torch.ones(36, 1)),
            "dora: .* its lokr has blocks",
        ),
    ],
)
def test_what_needs_the_base_and_cannot_be_cut_is_refused_with_the_reason(kind: Kind, why: str) -> None:
    with pytest.raises(AdapterError, match=why) as caught:
        split((kind,), FLUX, QKV)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind_name", ["coft", "boft_rescaled"])
def test_the_parts_of_a_constrained_rotation_are_free_and_come_back(kind_name: str) -> None:
    """Its constraint is on the norm of all blocks, which the file tells: the base is not asked."""
    kind, weight = sample(kind_name, (3 * H, H)), torch.randn(3 * H, H)
    found = split((kind,), FLUX, QKV)
    assert same(read_again(kohya_modules(FLUX, found)), Adapter(found))
    (again,) = kohya_modules(FLUX, found)[QKV]
    torch.testing.assert_close(again.delta(weight), kind.delta(weight), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind_name", [name for name in LAYER_NAMES if "tucker" not in name])
def test_halves_of_every_kind_are_put_right(kind_name: str) -> None:
    """A module whose halves the file has swapped: its columns are the same ones, in another order."""
    kind, weight = sample(kind_name, (4 * H, H)), torch.randn(4 * H, H)
    (part,) = split((kind,), FLUX, FINAL)["transformer.norm_out.linear"]
    swap = torch.cat([torch.arange(2 * H, 4 * H), torch.arange(2 * H)])
    torch.testing.assert_close(part.delta(weight[swap]), kind.delta(weight)[swap], rtol=1e-5, atol=1e-5)
    modules = {"transformer.norm_out.linear": (part,)}
    assert same(read_again(kohya_modules(FLUX, modules)), Adapter(modules))


def test_the_reason_is_in_the_error_for_the_file(tmp_path: Path) -> None:
    leaves = sample("dora_in", (3 * H, H)).to_leaves()
    path = tmp_path / "a.safetensors"
    write_tensors(path, {f"{QKV}.{leaf}": tensor.contiguous() for leaf, tensor in leaves.items()})
    with pytest.raises(AdapterFileError, match=f"(?s){path}.*{QKV}: dora: .*over the rows of all parts"):
        read(path)
    assert "over the rows of all parts" in inspect(path).unmatched[QKV]


@pytest.mark.parametrize("kind_name", ["coft", "boft_rescaled"])
def test_a_header_alone_is_enough_to_cut_rotations(tmp_path: Path, kind_name: str) -> None:
    leaves = sample(kind_name, (3 * H, H)).to_leaves()
    write_tensors(tmp_path / "a.safetensors", {f"{QKV}.{leaf}": tensor for leaf, tensor in leaves.items()})
    assert inspect(tmp_path / "a.safetensors").ok
    assert set(read(tmp_path / "a.safetensors").modules) == set(FLUX.paths_of(QKV))
