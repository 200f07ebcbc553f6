"""The denoising loss: noised latents, the network's target, and the weight of each timestep."""

from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from torch import Tensor

from difflora.draws import generator, integer


class LossOptions(BaseModel):
    """What the denoising error is measured on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_snr_gamma: FiniteFloat | None = Field(
        None,
        gt=0,
        description="Caps the weight of easy, nearly clean timesteps (5 is usual); off by default.",
    )
    noise_offset: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Adds this much noise that is constant over an image: helps very dark or bright looks.",
    )
    preservation: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of samples that keep the base as it is: their captions lose the trigger, and "
        "their target is what the base itself predicts, as it then is for dropped captions. Without it an "
        "adapter changes pictures that do not name it, too. It takes most where the text encoder is trained.",
    )
    preservation_class: str = Field(
        "",
        description="What stands in such captions in the place of the trigger: what a subject is, such as "
        "'dog'. By default nothing.",
    )


@dataclass(frozen=True, slots=True)
class Noised:
    """One batch ready for the network: `noisy` and `target` (B, 4, h, w), `timesteps` (B,), `weights`
    (B,)."""

    noisy: Tensor
    target: Tensor
    timesteps: Tensor
    weights: Tensor


@dataclass(frozen=True, slots=True)
class Diffusion:
    """The forward process of a base: `alphas_cumprod` (T,) float32 and what its network predicts."""

    alphas_cumprod: Tensor
    prediction_type: str

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The latents at their timesteps, and the target: the noise, or the velocity √ᾱ·noise −
        √(1−ᾱ)·latents.

        Source: Ho et al. 2020 (noise); Salimans & Ho 2022 (velocity).
        """
        signal = self.alphas_cumprod[timesteps].sqrt().view(-1, 1, 1, 1)
        spread = (1 - self.alphas_cumprod[timesteps]).sqrt().view(-1, 1, 1, 1)
        noisy = signal * latents + spread * noise
        if self.prediction_type == "v_prediction":
            return noisy, signal * noise - spread * latents
        return noisy, noise

    def timestep_weights(self, timesteps: Tensor, gamma: float | None) -> Tensor:
        """Min-SNR-γ weights (B,), or ones.

        min(SNR, γ) / SNR for noise prediction and min(SNR, γ) / (SNR + 1) for velocity. At zero SNR the
        former tends to 1, which is used there. Source: Hang et al. 2023, "Efficient Diffusion Training via
        Min-SNR Weighting".
        """
        if gamma is None:
            return torch.ones(len(timesteps))
        alpha = self.alphas_cumprod[timesteps].double()
        snr = alpha / (1 - alpha)
        capped = snr.clamp(max=gamma)
        if self.prediction_type == "v_prediction":
            return (capped / (snr + 1)).float()
        return torch.where(snr > 0, capped / snr, torch.ones_like(snr)).float()


def draw(
    latents: Tensor, diffusion: Diffusion, options: LossOptions, *, seed: int, batch: int, rows: range
) -> Noised:
    """Noises the latents (B, 4, h, w) of rows `rows` of global batch number `batch`.

    Timestep and noise of a row are pure functions of (seed, batch, row): every number of processes and every
    resumed run draws the same. All on the CPU, in float32.
    """
    noise, timesteps = [], []
    for row in rows:
        source = generator(seed, "noise", batch, row)
        sample = torch.randn(latents.shape[1:], generator=source)
        if options.noise_offset:
            sample += options.noise_offset * torch.randn(latents.shape[1], 1, 1, generator=source)
        noise.append(sample)
        timesteps.append(integer(len(diffusion.alphas_cumprod), seed, "timestep", batch, row))
    steps = torch.tensor(timesteps)
    noisy, target = diffusion.noised(latents, torch.stack(noise), steps)
    return Noised(noisy, target, steps, diffusion.timestep_weights(steps, options.min_snr_gamma))


def weighted_error(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """The sum over the batch of each row's mean squared error times its weight: a 0-d float32 tensor.

    A sum, so that parts of a batch on several processes or in several passes add up to the whole.
    """
    error = (prediction.float() - target.float()).square().flatten(1).mean(dim=1)
    return (error * weights).sum()
