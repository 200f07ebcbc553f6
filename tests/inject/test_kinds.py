"""Every trainable kind in a whole model: nothing changes at first, then it learns, and its file is what was
learned."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from difflora.adapter import AdapterMeta, Stack
from difflora.apply import applied
from difflora.errors import CheckpointError
from difflora.families.model import Model
from difflora.inject import NetworkOptions, injected
from difflora.inject.table import TRAINABLE

STARTS = [(kind, init) for kind, inits in TRAINABLE.items() for init in inits]


def output(model: Model, ids: torch.Tensor) -> torch.Tensor:
    source = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 16, 16, generator=source)
    hidden = model.component("text_encoder")(ids).last_hidden_state
    return model.pipeline.unet(latents, torch.tensor([3, 700]), hidden).sample


IDS = torch.arange(64).view(2, 32)


@pytest.mark.parametrize(("kind", "init"), STARTS)
def test_a_model_is_bit_identical_before_the_first_step(shapes_model: Model, kind: str, init: str) -> None:
    options = NetworkOptions.model_validate(
        {"kind": kind, "init": init, "targets": "all", "rank": 2, "train_text_encoder": True}
    )
    with torch.no_grad():
        base = output(shapes_model, IDS)
        with injected(shapes_model, options, seed=1):
            assert torch.equal(output(shapes_model, IDS), base)


@pytest.mark.parametrize(("kind", "init"), STARTS)
def test_it_learns_in_a_few_steps_and_its_adapter_draws_the_same(
    shapes_model: Model, kind: str, init: str
) -> None:
    options = NetworkOptions.model_validate(
        {"kind": kind, "init": init, "targets": r"attn2\.to_v$,up_blocks\.2.*conv1$", "rank": 4}
    )
    checksum = shapes_model.checksum()
    target = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    with injected(shapes_model, options, seed=1) as factors:
        (arena,) = factors.arenas()
        optimizer = torch.optim.AdamW([arena.flat], lr=1e-2, fused=True)
        losses = []
        for _ in range(8):
            arena.grad.zero_()
            loss = F.mse_loss(output(shapes_model, IDS), target)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        with torch.no_grad():
            trained, adapter = output(shapes_model, IDS), factors.collect(AdapterMeta("x", family="sd1"))
    assert losses[-1] < 0.97 * losses[0]
    with torch.no_grad():
        base = output(shapes_model, IDS)
        for mode in ("live", "merged"):
            with applied(shapes_model, Stack([(adapter, 1.0)]), mode=mode):
                assert (output(shapes_model, IDS) - trained).norm() < 1e-4 * (trained - base).norm()
        with injected(shapes_model, options, seed=1) as factors:
            factors.restore(adapter)
            assert torch.equal(output(shapes_model, IDS), trained)
    assert shapes_model.checksum() == checksum


def test_another_rank_or_kind_is_not_restored(shapes_model: Model) -> None:
    where = r"mid_block.*attn2\.to_v$"
    with injected(shapes_model, NetworkOptions(targets=where, rank=2), seed=1) as factors:
        adapter = factors.collect(AdapterMeta("x", family="sd1"))
    for other, words in (
        (NetworkOptions(targets=where, rank=3), r"down is \(2, 128\).*\(3, 128\)"),
        (NetworkOptions(targets=where, kind="full"), "a lora here, this run a full"),
    ):
        with (
            injected(shapes_model, other, seed=1) as factors,
            pytest.raises(CheckpointError, match=words),
        ):
            factors.restore(adapter)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "lorra"}, "'lora', 'dora', 'loha', 'lokr' or 'full'"),
        ({"kind": "dora", "init": "pissa"}, r"kind='dora' has no init='pissa'; use it with lora"),
        ({"kind": "full", "rslora": True}, "kind='full' has none"),
        ({"kind": "lora", "lokr_factor": 4}, "belongs to kind='lokr'"),
    ],
)
def test_options_that_cannot_work_are_refused(values: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        NetworkOptions.model_validate(values)


def test_rslora_scales_by_the_root_of_the_rank(shapes_model: Model) -> None:
    assert NetworkOptions(rank=16, alpha=8).scale == 0.5
    assert NetworkOptions(rank=16, alpha=8, rslora=True).scale == 2.0
    options = NetworkOptions(rank=16, alpha=8, rslora=True, targets=r"mid_block.*attn2\.to_v$")
    with injected(shapes_model, options, seed=1) as factors:
        (kind,) = next(iter(factors.collect(AdapterMeta()).modules.values()))
    assert float(kind.to_leaves()["alpha"]) == 32.0
