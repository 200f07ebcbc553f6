"""One batch of images through the diffusers pipeline: text, denoising, decoding, each checked for NaN."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from difflora.adapter import Tokens
from difflora.encode import TextConditioning, encode, token_chunks
from difflora.errors import GenerationError
from difflora.samplers import foresee, make_scheduler

if TYPE_CHECKING:
    from difflora.families.model import Model

StepHook = Callable[[int, int], None]
"""Called after each step with (steps done, steps in all); raising from it aborts."""
Watch = Callable[[Tensor], None]
"""Called after each step with the finished latents (B, 4, height / 8, width / 8) of the batch as the network
foresees them: to look at only."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Images drawn at once: image i has prompts[i], seeds[i] and tokens[i]; everything else they share.

    `tokens` are the words that adapters add to each image's prompts. `chunks` is the least number of text
    chunks; see `encode`.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    tokens: tuple[Tokens, ...]
    negative: str
    steps: int
    guidance: float
    guidance_rescale: float
    sampler: str
    width: int
    height: int
    clip_skip: int = 1
    eta: float = 0.0
    chunks: int = 1

    @property
    def guided(self) -> bool:
        """Whether the negative prompt is used: at a guidance of 1 or less it has no effect."""
        return self.guidance > 1.0

    @property
    def negatives(self) -> tuple[str, ...]:
        """The negative prompt of each image."""
        return (self.negative,) * len(self.prompts)


@torch.no_grad()
def draw(
    model: Model, batch: Batch, *, on_step: StepHook | None = None, watch: Watch | None = None
) -> list[Image.Image]:
    """The images of one batch, in order.

    Every random number of image i comes from seeds[i], drawn on the CPU: the same on every device. Calls
    every text encoder with len(prompts) rows, and the UNet with [uncond × B, cond × B] rows (B rows without
    guidance). Raises GenerationError with the stage and the step if anything is not finite; no image is
    returned then.
    """
    positive, negative = _conditioning(model, batch)
    latents = _denoise(model, batch, positive=positive, negative=negative, on_step=on_step, watch=watch)
    return _decode(model, latents)


def chunks_needed(model: Model, batch: Batch) -> int:
    """How many text chunks the images of a batch share: what the longest of its prompts needs."""
    found = token_chunks(model, batch.prompts, chunks=batch.chunks, tokens=batch.tokens)
    if not batch.guided:
        return found.chunks
    return token_chunks(model, batch.negatives, chunks=found.chunks, tokens=batch.tokens).chunks


def _conditioning(model: Model, batch: Batch) -> tuple[TextConditioning, TextConditioning | None]:
    chunks = chunks_needed(model, batch)
    positive = encode(model, batch.prompts, clip_skip=batch.clip_skip, chunks=chunks, tokens=batch.tokens)
    _require_finite(positive, model, f"the text embeddings of {batch.prompts[0]!r}")
    if not batch.guided:
        return positive, None
    if not batch.negative and getattr(model.pipeline.config, "force_zeros_for_empty_prompt", False):
        return positive, TextConditioning(
            torch.zeros_like(positive.hidden),
            None if positive.pooled is None else torch.zeros_like(positive.pooled),
        )
    negative = encode(model, batch.negatives, clip_skip=batch.clip_skip, chunks=chunks, tokens=batch.tokens)
    _require_finite(negative, model, f"the text embeddings of the negative prompt {batch.negative!r}")
    return positive, negative


def _denoise(
    model: Model,
    batch: Batch,
    *,
    positive: TextConditioning,
    negative: TextConditioning | None,
    on_step: StepHook | None,
    watch: Watch | None,
) -> Tensor:
    pipeline = model.pipeline
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in batch.seeds]
    finite: list[Tensor] = []
    foreseen: deque[Tensor] = deque(maxlen=1)

    def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        finite.append(tensors["latents"].isfinite().all())
        if watch is not None:
            watch(foreseen[-1])
        if on_step is not None:
            on_step((step + 1) * batch.steps // pipe.num_timesteps, batch.steps)
        return tensors

    arguments: dict[str, Any] = {
        "prompt_embeds": positive.hidden.to(model.dtype),
        "negative_prompt_embeds": None if negative is None else negative.hidden.to(model.dtype),
        "latents": _noise(model, batch, generators),
        "generator": generators,
        "num_inference_steps": batch.steps,
        "guidance_scale": batch.guidance,
        "guidance_rescale": batch.guidance_rescale,
        "eta": batch.eta,
        "width": batch.width,
        "height": batch.height,
        "callback_on_step_end": after_step,
        "output_type": "latent",
    }
    if positive.pooled is not None:
        size = (batch.height, batch.width)
        arguments |= {
            "pooled_prompt_embeds": positive.pooled.to(model.dtype),
            "negative_pooled_prompt_embeds": None if negative is None else _pooled(negative).to(model.dtype),
            "original_size": size,
            "crops_coords_top_left": (0, 0),
            "target_size": size,
        }
    with _sampler(pipeline, batch):
        if watch is not None:
            foresee(pipeline.scheduler, foreseen.append)
        latents: Tensor = pipeline(**arguments).images
    _require_finite_steps(model, torch.stack(finite).tolist())
    return latents


def _pooled(text: TextConditioning) -> Tensor:
    assert text.pooled is not None, "positive and negative come from the same encoders"
    return text.pooled


def _noise(model: Model, batch: Batch, generators: list[torch.Generator]) -> Tensor:
    """The starting noise, one image a generator, drawn in float32: the same numbers in every dtype."""
    factor = model.pipeline.vae_scale_factor
    shape = (1, model.pipeline.unet.config.in_channels, batch.height // factor, batch.width // factor)
    noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
    return noise.to(model.device, model.dtype)


@contextmanager
def _sampler(pipeline: Any, batch: Batch) -> Iterator[None]:
    """The pipeline with the batch's sampler, which is taken away again afterwards."""
    scheduler = pipeline.scheduler
    try:
        pipeline.scheduler = make_scheduler(batch.sampler, scheduler.config, seeds=batch.seeds)
        with warnings.catch_warnings():
            # diffusers' schedulers turn tensors into arrays in a way that numpy is giving up.
            warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
            yield
    finally:
        pipeline.scheduler = scheduler


def _decode(model: Model, latents: Tensor) -> list[Image.Image]:
    pixels = model.decode_latents(latents)
    model.pipeline.maybe_free_model_hooks()
    if not bool(pixels.isfinite().all()):
        raise GenerationError(
            _not_finite(
                model, f"the VAE's output ({model.pipeline.vae.dtype})", "--vae FILE, or --dtype float32"
            )
        )
    return model.pipeline.image_processor.postprocess(pixels, output_type="pil")


def _require_finite(text: TextConditioning, model: Model, what: str) -> None:
    tensors = [text.hidden] if text.pooled is None else [text.hidden, text.pooled]
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise GenerationError(
            _not_finite(model, what, "lower text weights of the adapters, or --dtype float32")
        )


def _require_finite_steps(model: Model, finite: list[bool]) -> None:
    if not all(finite):
        what = f"the latents after step {finite.index(False) + 1} of {len(finite)} (UNet in {model.dtype})"
        raise GenerationError(
            _not_finite(model, what, "lower adapter weights or guidance, or --dtype float32")
        )


def _not_finite(model: Model, what: str, remedy: str) -> str:
    return (
        f"{what} hold NaN or Inf, which would be a black image; expected finite numbers. Nothing was drawn. "
        f"Base {model.facts.name!r} on {model.device}. Try {remedy}."
    )
