"""The forward process and the weights of the loss, against diffusers and against their own laws."""

import pytest
import torch
from diffusers import DDPMScheduler

from difflora.training.loss import Diffusion, LossOptions, draw, weighted_error

EPSILON = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
VELOCITY = DDPMScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
)


@pytest.mark.parametrize("scheduler", [EPSILON, VELOCITY])
def test_noised_latents_and_targets_are_those_of_diffusers(scheduler: DDPMScheduler) -> None:
    kind = scheduler.config["prediction_type"]
    latents, noise, steps = (
        torch.randn(5, 4, 8, 8),
        torch.randn(5, 4, 8, 8),
        torch.tensor([0, 10, 500, 998, 999]),
    )
    noisy, target = Diffusion(scheduler.alphas_cumprod, kind).noised(latents, noise, steps)
    wanted = scheduler.get_velocity(latents, noise, steps) if kind == "v_prediction" else noise
    assert torch.allclose(noisy, scheduler.add_noise(latents, noise, steps), atol=1e-6)
    assert torch.allclose(target, wanted, atol=1e-6)


def test_min_snr_weights() -> None:
    alphas = torch.tensor([0.999, 0.5, 0.1, 0.0])  # SNR 999, 1, 1/9, 0
    steps = torch.arange(4)
    epsilon = Diffusion(alphas, "epsilon").timestep_weights(steps, 5.0)
    velocity = Diffusion(alphas, "v_prediction").timestep_weights(steps, 5.0)
    assert torch.allclose(epsilon, torch.tensor([5 / 999, 1.0, 1.0, 1.0]), rtol=1e-3)
    assert torch.allclose(velocity, torch.tensor([5 / 1000, 1 / 2, 0.1, 0.0]), rtol=1e-3)
    assert torch.equal(Diffusion(alphas, "epsilon").timestep_weights(steps, None), torch.ones(4))


def test_a_row_draws_the_same_whoever_computes_it() -> None:
    diffusion, latents = Diffusion(EPSILON.alphas_cumprod, "epsilon"), torch.randn(4, 4, 8, 8)
    options = LossOptions(noise_offset=0.1)
    whole = draw(latents, diffusion, options, seed=3, batch=9, rows=range(4))
    part = draw(latents[1:3], diffusion, options, seed=3, batch=9, rows=range(1, 3))
    assert torch.equal(whole.noisy[1:3], part.noisy) and torch.equal(whole.timesteps[1:3], part.timesteps)
    other = draw(latents, diffusion, options, seed=3, batch=10, rows=range(4))
    assert not torch.equal(whole.noisy, other.noisy)


def test_noise_offset_moves_the_mean_of_a_channel() -> None:
    diffusion, latents = Diffusion(EPSILON.alphas_cumprod, "epsilon"), torch.zeros(16, 4, 32, 32)
    spread = [
        draw(latents, diffusion, LossOptions(noise_offset=offset), seed=0, batch=0, rows=range(16))
        .target.mean(dim=(2, 3))
        .std()
        for offset in (0.0, 0.5)
    ]
    assert spread[0] < 0.06 and 0.35 < spread[1] < 0.65


def test_errors_of_parts_add_up_to_the_whole() -> None:
    prediction, target, weights = torch.randn(6, 4, 8, 8), torch.randn(6, 4, 8, 8), torch.rand(6)
    parts = [weighted_error(prediction[s], target[s], weights[s]) for s in (slice(0, 1), slice(1, 6))]
    whole = weighted_error(prediction, target, weights)
    assert torch.allclose(sum(parts, torch.zeros(())), whole)
    plain = weighted_error(prediction, target, torch.ones(6)) / 6
    assert torch.allclose(plain, torch.nn.functional.mse_loss(prediction, target))
