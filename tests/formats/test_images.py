"""An image through diffusers, which reads our file itself, equals that of weights we merged."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import nn

from difflora.adapter import Adapter, AdapterMeta, Stack
from difflora.formats import write
from difflora.kinds import LoRA

PROMPT = "a red circle above a blue square"


def pipeline(folder: Path) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def live_modules(pipe: StableDiffusionPipeline) -> dict[str, nn.Module]:
    """Path -> module, of the UNet and the text encoder."""
    modules = {f"unet.{name}": module for name, module in pipe.unet.named_modules()}
    for name, module in pipe.text_encoder.named_modules():
        modules[f"text_encoder.text_model.{name.removeprefix('text_model.')}"] = module
    return modules


def random_adapter(modules: dict[str, nn.Module]) -> Adapter:
    """Strong enough to be seen: attention, convolutions of both sizes, and the text encoder."""
    generator = torch.Generator().manual_seed(3)
    found: dict[str, tuple[LoRA]] = {}
    for path, module in sorted(modules.items()):
        if not path.endswith(("to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1", "q_proj", "out_proj")):
            continue
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        out, *rest = module.weight.shape
        down = torch.randn(4, *rest, generator=generator) / np.sqrt(np.prod(rest))
        up = torch.randn(out, 4, *(1,) * (len(rest) - 1), generator=generator)
        found[path] = (LoRA(down, up * 3.0 * module.weight.detach().std(), scale=0.5),)
    return Adapter(found, AdapterMeta("strong", "sd1"))


def image(pipe: StableDiffusionPipeline) -> np.ndarray:
    generator = torch.Generator().manual_seed(11)
    size = pipe.unet.config.sample_size * 8
    output = pipe(
        PROMPT, num_inference_steps=4, height=size, width=size, generator=generator, output_type="np"
    )
    return output.images[0]


@pytest.fixture(scope="module")
def merged(shapes_folder: Path) -> tuple[Adapter, np.ndarray, np.ndarray]:
    """The adapter, the base's image, and the image with ΔW added to the base's weights."""
    pipe = pipeline(shapes_folder)
    modules = live_modules(pipe)
    adapter = random_adapter(modules)
    plain = image(pipe)
    with torch.no_grad():
        for path in adapter.modules:
            weight = modules[path].get_parameter("weight")
            weight += Stack([(adapter, 1.0)]).delta(path, weight)
    return adapter, plain, image(pipe)


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_diffusers_draws_our_files_as_we_would(
    shapes_folder: Path, merged: tuple[Adapter, np.ndarray, np.ndarray], tmp_path: Path, layout: str
) -> None:
    adapter, plain, expected = merged
    write(adapter, tmp_path / "strong.safetensors", format=layout)
    pipe = pipeline(shapes_folder)
    pipe.load_lora_weights(str(tmp_path), weight_name="strong.safetensors")
    found = image(pipe)
    assert np.abs(found - expected).max() <= 1e-3
    assert np.abs(plain - expected).mean() > 0.02, (
        "the adapter must change the image for this to say anything"
    )
