"""Samplers, run on a denoiser whose answer is known.

The toy model is exact for images drawn from N(0.7, 0.3): every sampler must turn noise into that, and the
deterministic ones must turn noise z into 0.7 + 0.3 z.
"""

import inspect

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from difflora.errors import ConfigError
from difflora.samplers import SAMPLERS, find_sampler, foresee, make_scheduler

# diffusers 0.42 hands tensors to numpy 2 in a way numpy means to change; users never see it.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
EPSILON = {**BETAS, "prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 1}
ZERO_SNR = {
    **BETAS,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
    "rescale_betas_zero_snr": True,
}
CONFIGS = {"epsilon": EPSILON, "v-zero-snr": ZERO_SNR}
MEAN, SPREAD = 0.7, 0.3
SEEDS = [5, 6]
RANDOM = {"Euler a", "DPM2 a", "DPM++ 2M SDE", "DPM++ 3M SDE", "DPM++ SDE", "DDPM", "LCM"}


def alphas_of(config):
    keys = (*BETAS, "rescale_betas_zero_snr")
    return DDIMScheduler(**{k: config[k] for k in keys if k in config}).alphas_cumprod.double().numpy()


def clean_of(x, timestep, alphas):
    """The best guess at the image in a noised one when images are N(0.7, 0.3) in every pixel; a and s."""
    level = np.interp(float(timestep), np.arange(1000), alphas)
    a, s = level**0.5, (1 - level) ** 0.5
    return MEAN + a * SPREAD**2 / ((a * SPREAD) ** 2 + s**2) * (x.double() - a * MEAN), a, s


def denoise(x, timestep, alphas, prediction):
    """The best answer to a noised image when images are N(0.7, 0.3) in every pixel."""
    clean, a, s = clean_of(x, timestep, alphas)
    noise = (x.double() - a * clean) / max(s, 1e-9)
    return (a * noise - s * clean if prediction == "v_prediction" else noise).float()


def draw(name, config, *, steps, seeds=SEEDS, noise=None):
    scheduler = make_scheduler(name, config, seeds=seeds)
    scheduler.set_timesteps(steps)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    start = torch.stack([torch.randn(4, 16, 16, generator=g) for g in generators]) if noise is None else noise
    alphas = alphas_of(config)
    x, calls = start * scheduler.init_noise_sigma, 0
    wants_generator = "generator" in inspect.signature(scheduler.step).parameters
    for timestep in scheduler.timesteps:
        out = denoise(scheduler.scale_model_input(x, timestep), timestep, alphas, config["prediction_type"])
        options = {"generator": generators} if wants_generator else {}
        x, calls = scheduler.step(out, timestep, x, **options).prev_sample, calls + 1
    return x, start, calls


def expected_calls(name, steps):
    if (
        SAMPLERS[name].scheduler_class in ("HeunDiscreteScheduler", "DPMSolverSDEScheduler")
        or name[:4] == "DPM2"
    ):
        return 2 * steps - 1
    return steps + 1 if name == "PLMS" else steps


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_reaches_the_known_distribution(name, config):
    x, start, calls = draw(name, config, steps=20)
    assert calls == expected_calls(name, 20)
    assert abs(x.mean().item() - MEAN) < 0.03
    assert 0.15 < x.std().item() < 0.38  # first-order samplers of 20 steps shrink the spread
    if SAMPLERS[name].method not in RANDOM:
        assert (x - (MEAN + SPREAD * start)).abs().max() < 0.35


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_finished_image_is_foreseen_at_every_step(name, config):
    scheduler = make_scheduler(name, config, seeds=SEEDS)
    scheduler.set_timesteps(7)
    seen = []
    foresee(scheduler, seen.append)
    alphas, source = alphas_of(config), torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 8, 8, generator=source) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        noisy = scheduler.scale_model_input(x, timestep)
        answer = denoise(noisy, timestep, alphas, config["prediction_type"])
        x = scheduler.step(answer, timestep, x).prev_sample
        torch.testing.assert_close(seen[-1].double(), clean_of(noisy, timestep, alphas)[0], atol=2e-3, rtol=0)
    assert len(seen) == len(scheduler.timesteps)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_finite_at_awkward_step_counts(name, config):
    for steps in (1, 2, 3, 7):
        x, _, calls = draw(name, config, steps=steps)
        assert torch.isfinite(x).all(), steps
        assert calls == (1 if steps == 1 else expected_calls(name, steps))


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_same_seeds_give_the_same_image_and_others_do_not(name):
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    first, again, other = (
        draw(name, ZERO_SNR, steps=6, seeds=seeds, noise=noise)[0] for seeds in (SEEDS, SEEDS, [7, 8])
    )
    assert torch.equal(first, again)
    assert torch.equal(first, other) != (SAMPLERS[name].method in RANDOM)


@pytest.mark.parametrize("name", sorted(n for n in SAMPLERS if SAMPLERS[n].method in RANDOM))
def test_an_image_does_not_depend_on_its_neighbours_in_the_batch(name):
    both, start, _ = draw(name, ZERO_SNR, steps=5)
    alone, own, _ = draw(name, ZERO_SNR, steps=5, seeds=SEEDS[1:])
    assert torch.equal(own, start[1:])
    assert torch.allclose(alone, both[1:], atol=1e-5)


@pytest.mark.parametrize("name", ["Euler", "Euler a", "Heun", "LMS", "DPM++ 2M", "DPM++ SDE"])
@pytest.mark.parametrize("steps", [1, 2, 25, 100])
def test_even_steps_have_the_noise_levels_of_k_diffusion(name, steps):
    scheduler = make_scheduler(name, EPSILON, seeds=SEEDS)
    scheduler.set_timesteps(steps)
    alphas = alphas_of(EPSILON)
    table = np.log(((1 - alphas) / alphas) ** 0.5)
    wanted = np.exp(np.interp(np.linspace(999, 0, steps), np.arange(1000), table))
    for level in wanted:  # within half a timestep; some have further ones between
        assert np.abs(scheduler.sigmas.numpy() / level - 1).min() < 0.05, level
    assert float(scheduler.sigmas[-1]) == 0


@pytest.mark.parametrize("name", [n for n in SAMPLERS if SAMPLERS[n].spacing != "range"])
def test_spaced_sigmas_start_at_pure_noise_and_span_the_model(name):
    for config, top in ((EPSILON, 14.61), (ZERO_SNR, 4096.0)):
        scheduler = make_scheduler(name, config, seeds=SEEDS)
        for steps in (2, 20, 400):
            scheduler.set_timesteps(steps)
            assert float(scheduler.timesteps[0]) == pytest.approx(999, abs=1e-3)
            assert len(set(scheduler.timesteps[:2].tolist())) == 2
            assert float(scheduler.sigmas[0]) == pytest.approx(top, rel=1e-3)
            assert float(scheduler.sigmas[-1]) == 0
        positive = scheduler.sigmas[scheduler.sigmas > 0]
        assert float(positive.min()) == pytest.approx(0.0292, abs=2e-4)


def test_schedulers_without_a_rescale_of_their_own_get_the_rescaled_betas():
    euler, heun = (make_scheduler(name, ZERO_SNR) for name in ("Euler", "Heun"))
    assert torch.allclose(euler.alphas_cumprod, heun.alphas_cumprod, rtol=1e-4, atol=1e-9)


def test_habits_of_another_sampler_in_the_config_are_not_inherited():
    crowded = {**EPSILON, "use_karras_sigmas": True, "clip_sample": True, "algorithm_type": "dpmsolver++"}
    for name in ("Euler", "DDIM", "DPM++ 2M SDE"):
        assert make_scheduler(name, crowded).config == make_scheduler(name, EPSILON).config


@pytest.mark.parametrize("steps", [61, 103, 122])
def test_step_counts_that_diffusers_rounds_wrongly_are_refused(steps):
    scheduler = make_scheduler("DPM++ 2M", ZERO_SNR)
    with pytest.raises(ConfigError, match=f"Use {steps + 1} steps"):
        scheduler.set_timesteps(steps)
    scheduler.set_timesteps(steps + 1)
    assert scheduler.timesteps.min() >= 0


@pytest.mark.parametrize(
    ("name", "schedule", "expected"),
    [
        ("DPM++ 2M", "Karras", "DPM++ 2M Karras"),
        ("DPM++ 2M Karras", "Karras", "DPM++ 2M Karras"),
        ("DPM++ 2M", "Automatic", "DPM++ 2M Karras"),
        ("DPM++ 2M SDE", "Automatic", "DPM++ 2M SDE Exponential"),
        ("DPM++ 2M", "Uniform", "DPM++ 2M"),
        ("DPM++ 2M", "", "DPM++ 2M"),
        ("Euler", "Automatic", "Euler"),
        ("Euler Ancestral", "", "Euler a"),
        ("euler_ancestral", "normal", "Euler a"),
        ("k_euler_ancestral", "", "Euler a"),
        ("k_dpmpp_2m_ka", "", "DPM++ 2M Karras"),
        ("dpmpp_sde", "karras", "DPM++ SDE Karras"),
        ("uni_pc", "", "UniPC"),
        ("plms", "", "PLMS"),
    ],
)
def test_other_spellings(name, schedule, expected):
    assert find_sampler(name, schedule).name == expected


@pytest.mark.parametrize("row", SAMPLERS.values(), ids=SAMPLERS)
def test_the_name_as_written_for_a1111_finds_the_row_again(row):
    assert find_sampler(row.method, row.schedule) is row
    assert find_sampler(row.name) is row


@pytest.mark.parametrize(
    ("name", "config", "seeds", "words"),
    [
        ("Eular", EPSILON, None, "Euler a"),
        ("DPM++ SDE", EPSILON, None, "one seed for each image"),
        ("Euler", {**ZERO_SNR, "prediction_type": "epsilon"}, None, "v_prediction"),
        ("Euler", {**EPSILON, "prediction_type": "sample"}, None, "'sample'"),
    ],
)
def test_what_cannot_work_is_refused(name, config, seeds, words):
    with pytest.raises(ConfigError, match=words):
        make_scheduler(name, config, seeds=seeds)


def test_a_schedule_that_a_sampler_does_not_have_is_refused():
    with pytest.raises(ConfigError, match="it has: Uniform"):
        find_sampler("Euler a", "Karras")


def test_a_wrong_number_of_seeds_is_refused():
    with pytest.raises(ConfigError, match="1 seeds were given for a batch of 2"):
        draw("DPM++ SDE", EPSILON, steps=2, seeds=[1], noise=torch.zeros(2, 4, 8, 8))
