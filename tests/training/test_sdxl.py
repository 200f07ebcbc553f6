"""SDXL's own ways: two text encoders, pooled embeddings, sizes and crops."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file

from difflora.adapter import Stack
from difflora.apply import applied
from difflora.data.buckets import assign
from difflora.families import load
from difflora.formats import read
from difflora.generate import generate
from difflora.recipe import Request
from difflora.training.examples import _time_ids
from difflora.training.loop import train
from tests.tiny_sdxl import save_tiny_sdxl


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture
def sdxl(small, tiny: Path):
    def make(**changes):
        values = {"base_model": str(tiny), "resolution": 64, "targets": "attn", "steps": 4, "save_every": 3}
        return small(**{**values, **changes})

    return make


@pytest.mark.parametrize("options", [{}, {"train_text_encoder": True, "gradient_checkpointing": True}])
def test_training_to_a_file_that_acts(sdxl, tiny: Path, options: dict) -> None:
    config = sdxl(save_dtype="float32", **options)
    (*_, last) = train(config)
    assert last.adapter is not None
    names = {name.split(".")[0] for name in load_file(last.adapter)}
    assert any(
        name.startswith("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q") for name in names
    )
    assert any(name.startswith("lora_te2_text_model") for name in names) == bool(options)
    assert any(name.startswith("lora_te1_text_model") for name in names) == bool(options)
    adapter, model = read(last.adapter), load(tiny, device="cpu")
    assert (
        adapter.meta.family == "sdxl" and adapter.meta.training["ss_base_model_version"] == "sdxl_base_v1-0"
    )
    request = Request(prompt="a red circle", steps=2, width=64, height=64)
    (base,), (drawn,) = generate(model, request), generate(model, request, stack=Stack([(adapter, 1.0)]))
    assert base.tobytes() != drawn.tobytes()


def test_gradient_checkpointing_changes_nothing(sdxl, tmp_path: Path) -> None:
    losses = [
        [report.loss for report in train(sdxl(output=tmp_path / str(way), gradient_checkpointing=way))]
        for way in (False, True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_an_interrupted_run_gives_the_same_bytes(sdxl, tmp_path: Path) -> None:
    (*_, last) = train(sdxl(output=tmp_path / "whole", train_text_encoder=True))
    assert last.adapter is not None
    reports = train(sdxl(train_text_encoder=True))
    next(reports), next(reports)
    reports.close()
    (*_, resumed) = train(sdxl(train_text_encoder=True))
    assert resumed.adapter is not None
    assert resumed.adapter.read_bytes() == last.adapter.read_bytes()


@pytest.mark.parametrize("size", [(1024, 1024), (2048, 1000), (700, 1400)])
def test_time_ids_are_size_crop_and_target(size: tuple[int, int]) -> None:
    (bucket,) = assign([size], resolution=1024, step=64, min_edge=512, max_edge=2048, upscale=True).sizes
    height, width, top, left, bucket_height, bucket_width = _time_ids(size, bucket)
    assert (width, height) == size and (bucket_width, bucket_height) == bucket
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    assert 2 * left == pytest.approx(size[0] * scale - bucket[0], abs=1)
    assert 2 * top == pytest.approx(size[1] * scale - bucket[1], abs=1)
    assert min(top, left) == 0


def test_diffusers_loads_the_file(sdxl, tiny: Path) -> None:
    """diffusers + PEFT predict what the model with our ΔW predicts."""
    (*_, last) = train(sdxl(save_dtype="float32", learning_rate=0.05, train_text_encoder=True))
    assert last.adapter is not None
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny, dtype=torch.float32)
    pipeline.load_lora_weights(last.adapter)
    model = load(tiny, device="cpu")
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor(500), torch.randn(1, 32, 64))
    added = {"text_embeds": torch.randn(1, 32), "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])}
    with torch.no_grad(), applied(model, Stack([(read(last.adapter), 1.0)]), mode="merged"):
        ours = model.pipeline.unet(*inputs, added_cond_kwargs=added).sample
        theirs = pipeline.unet(*inputs, added_cond_kwargs=added).sample
    assert torch.allclose(ours, theirs, atol=1e-4)
