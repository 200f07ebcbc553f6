"""How a base computes on GPUs that are not here: what is asked of torch and diffusers."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from difflora.families import family
from difflora.families.hardware import pick_dtype, place

CUDA = torch.device("cuda")


class Pipeline:
    """What `place` moves about."""

    def __init__(self, sample_size: int) -> None:
        self.vae = AutoencoderKL(
            block_out_channels=(8,) * 4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=2,
            sample_size=sample_size,
        )

    def enable_model_cpu_offload(self, device: torch.device) -> None:
        self.offloaded_to = device


@pytest.mark.parametrize("sample_size", [512, 1024])
def test_under_offload_a_picture_of_1024_pixels_is_decoded_in_tiles(
    sample_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(sample_size)
    place(pipeline, device=CUDA, offload=True)
    assert pipeline.offloaded_to == CUDA
    seen: list[torch.Size] = []
    decoder = pipeline.vae.decoder
    inner = decoder.forward

    def forward(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(x.shape[-2:])
        return inner(x, *rest)

    monkeypatch.setattr(decoder, "forward", forward)
    with torch.no_grad():
        pixels = pipeline.vae.decode(torch.randn(1, 4, 128, 128)).sample
    assert pixels.shape[-2:] == (1024, 1024)
    assert len(seen) > 1 and all(max(shape) <= 64 for shape in seen)


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_bfloat16_is_only_used_where_the_gpu_computes_in_it(
    native: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native)
    assert pick_dtype(None, family=family("sdxl"), device=CUDA) == expected
    assert pick_dtype(None, family=family("sd1"), device=CUDA) == torch.float16
    assert pick_dtype("bfloat16", family=family("sdxl"), device=CUDA) == torch.bfloat16
