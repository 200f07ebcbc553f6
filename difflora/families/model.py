"""A loaded base model, and what is known of one before it is loaded."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from difflora.families.family import Family, canonical_names


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """Facts of a base model that its header or configs tell, without building it.

    `variant` is "sd15", "sd2", "sdxl", or "shapes" for anything smaller than the real ones; `resolution` is
    the native edge in pixels; `name` is a file stem or folder name, never a path; `sha256` is that of the
    weights (one file: of the file; a folder: over its weight files in order), or "" where it was not
    computed.
    """

    family: str
    variant: str
    prediction_type: str
    zero_terminal_snr: bool
    resolution: int
    name: str
    sha256: str = ""
    vae_sha256: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class NoiseSchedule:
    """The noise levels a model was trained on: `alphas_cumprod` (num_train_timesteps,) float32 on the CPU.

    The rescale to a zero terminal signal-to-noise ratio is already in it: its last value is then exactly 0.
    """

    alphas_cumprod: Tensor
    num_train_timesteps: int
    prediction_type: str


def digest(module: nn.Module) -> str:
    """sha256 over the tensors of a module's state dict: names, dtypes and bits."""
    total = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        total.update(f"{name} {tensor.dtype}\n".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


class Model:
    """A base model in memory: a diffusers pipeline, its family, and look-ups by path.

    `device` is where it computes, also under CPU offload, where the weights rest elsewhere. `dtype` is that
    of the UNet's weights; the VAE may be kept in another. `pristine` holds what a merged stack has
    overwritten, by parameter path (`unet.conv_in.weight`, `unet.conv_in.bias`).
    """

    def __init__(
        self, pipeline: Any, family: Family, *, facts: BaseFacts, source: str, device: torch.device
    ) -> None:
        self.pipeline = pipeline
        self.family = family
        self.facts = facts
        self.source = source
        self.device = device
        self.dtype: torch.dtype = pipeline.unet.dtype
        self.pristine: dict[str, Tensor] = {}
        # Taken now: samplers replace the pipeline's scheduler, and some of theirs bend the last noise level.
        self._schedule = NoiseSchedule(
            pipeline.scheduler.alphas_cumprod,
            int(pipeline.scheduler.config["num_train_timesteps"]),
            facts.prediction_type,
        )

    def component(self, name: str) -> nn.Module:
        """The live component of that name, such as "unet". Raises KeyError if there is none."""
        if name not in {part.name for part in self.family.components}:
            raise KeyError(name)
        return getattr(self.pipeline, name)

    def module(self, path: str) -> nn.Module:
        """The live module of a path; text paths have their `text_model` level whatever the library has.

        Raises KeyError if the model has no such module.
        """
        return self._modules[path]

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """path -> shape of `weight` of every module that has one, in the model's order; cached."""
        return self._shapes

    def noise_schedule(self) -> NoiseSchedule:
        """The noise levels that the model was trained on."""
        return self._schedule

    def checksum(self) -> str:
        """sha256 over all tensors of UNet and text encoders: names, dtypes and bits."""
        parts = [f"{part.name} {digest(self.component(part.name))}" for part in self.family.components]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of latents, both (B, 4, H/8, W/8) float32, in the UNet's scale.

        `pixels` is (B, 3, H, W) in [-1, 1]. Computed in the VAE's own dtype.
        """
        vae = self.pipeline.vae
        posterior = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist
        shift, scale = vae.config.shift_factor or 0.0, vae.config.scaling_factor
        return (posterior.mean.float() - shift) * scale, posterior.std.float() * scale

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32 in [-1, 1] (not clipped) of scaled latents (B, 4, H/8, W/8).

        One by one, for a decoder takes more memory an image than the UNet does. Computed in the VAE's own
        dtype, which for SDXL is float32 also where the UNet's is not; images in which a float16 VAE
        overflows, as some of SD 1.x do, once more in float32.
        """
        vae = self.pipeline.vae
        shift, scale = vae.config.shift_factor or 0.0, vae.config.scaling_factor
        unscaled = latents.to(self.device, torch.float32) / scale + shift
        return torch.cat([_decoded(vae, one) for one in unscaled.split(1)])

    @cached_property
    def _modules(self) -> Mapping[str, nn.Module]:
        found: dict[str, nn.Module] = {}
        for part in self.family.components:
            modules = dict(self.component(part.name).named_modules())
            names = canonical_names(modules, part.name)
            found |= {f"{part.name}.{names[name]}": module for name, module in modules.items() if name}
        return MappingProxyType(found)

    @cached_property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        weights = {path: module._parameters.get("weight") for path, module in self._modules.items()}
        return MappingProxyType(
            {path: tuple(weight.shape) for path, weight in weights.items() if weight is not None}
        )


def _decoded(vae: Any, latents: Tensor) -> Tensor:
    dtype = vae.dtype
    pixels = vae.decode(latents.to(dtype)).sample.float()
    if dtype != torch.float16 or bool(pixels.isfinite().all()):
        return pixels
    try:
        return vae.to(torch.float32).decode(latents).sample.float()
    finally:
        vae.to(dtype)
