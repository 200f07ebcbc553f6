"""The table of samplers: an A1111 display name -> a diffusers scheduler class and its options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, wraps
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from difflora.errors import ConfigError, listing

if TYPE_CHECKING:
    from torch import Tensor

Spacing = Literal["range", "karras", "exponential"]

# What a scheduler config says about the model. Everything else in it is the habit of one sampler.
MODEL_FACTS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "timestep_spacing",
    "steps_offset",
    "set_alpha_to_one",
    "rescale_betas_zero_snr",
)
# diffusers' own stand-in for a cumulative alpha of zero: the smallest float16, a sigma of 4096.
NEAR_ZERO_ALPHA = 2.0**-24
# Where the noise levels of Stable Diffusion's own schedule end (scaled-linear betas 0.00085 to 0.012).
SD_SIGMA_MAX = 14.6146


@dataclass(frozen=True, slots=True)
class Sampler:
    """One row: how a named sampler is made.

    `spacing` chooses the noise levels: those of evenly spaced timesteps, or the Karras or exponential spacing
    of sigmas. `even_start` samplers begin at the last timestep whatever the config says (as in A1111 and
    k-diffusion), the others keep its `timestep_spacing`. `seeded` samplers draw noise from seeds, not from a
    generator. No more than `max_steps` steps are possible.
    """

    name: str
    scheduler_class: str
    options: Mapping[str, Any] = field(default_factory=dict)
    spacing: Spacing = "range"
    even_start: bool = True
    seeded: bool = False
    max_steps: int = 1000

    @property
    def method(self) -> str:
        """A1111's `Sampler` value: the name without its schedule."""
        return self.name.removesuffix(" Karras").removesuffix(" Exponential")

    @property
    def schedule(self) -> str:
        """A1111's `Schedule type` value for the same noise levels; on the lowest see `_ToLowestNoise`."""
        if self.spacing != "range":
            return self.spacing.capitalize()
        return "Uniform" if self.even_start else "Automatic"


def _family(name: str, scheduler_class: str, options: Mapping[str, Any], *spacings: Spacing) -> list[Sampler]:
    rows = [Sampler(name, scheduler_class, options)]
    return rows + [Sampler(f"{name} {s.capitalize()}", scheduler_class, options, spacing=s) for s in spacings]


_SDE = {"algorithm_type": "sde-dpmsolver++"}
_ROWS = (
    *_family("Euler", "EulerDiscreteScheduler", {}, "karras"),
    Sampler("Euler a", "EulerAncestralDiscreteScheduler"),
    *_family("Heun", "HeunDiscreteScheduler", {}, "karras"),
    *_family("LMS", "LMSDiscreteScheduler", {}, "karras"),
    *_family("DPM2", "KDPM2DiscreteScheduler", {}, "karras"),
    *_family("DPM2 a", "KDPM2AncestralDiscreteScheduler", {}, "karras"),
    *_family("DPM++ 2M", "DPMSolverMultistepScheduler", {}, "karras", "exponential"),
    *_family("DPM++ 2M SDE", "DPMSolverMultistepScheduler", _SDE, "karras", "exponential"),
    *_family(
        "DPM++ 3M SDE", "DPMSolverMultistepScheduler", {**_SDE, "solver_order": 3}, "karras", "exponential"
    ),
    Sampler("DPM++ SDE", "DPMSolverSDEScheduler", seeded=True),
    Sampler("DPM++ SDE Karras", "DPMSolverSDEScheduler", spacing="karras", seeded=True),
    *_family("UniPC", "UniPCMultistepScheduler", {}, "karras"),
    Sampler("DDIM", "DDIMScheduler", {"clip_sample": False}, even_start=False),
    Sampler("DDPM", "DDPMScheduler", {"clip_sample": False}, even_start=False),
    Sampler("PLMS", "PNDMScheduler", {"skip_prk_steps": True}, even_start=False),
    # A consistency model is distilled on 50 timesteps; there are no others to choose from.
    Sampler("LCM", "LCMScheduler", {"clip_sample": False}, even_start=False, max_steps=50),
)
SAMPLERS: Mapping[str, Sampler] = MappingProxyType({row.name: row for row in _ROWS})

# Spellings of other tools, in lower case with single spaces.
_ALIASES = {
    "euler ancestral": "Euler a",
    "dpm 2": "DPM2",
    "dpm 2 a": "DPM2 a",
    "dpm 2 ancestral": "DPM2 a",
    "dpm2 ancestral": "DPM2 a",
    "pndm": "PLMS",
    "uni pc": "UniPC",
    "uni pc bh2": "UniPC",
    "dpmpp 2m": "DPM++ 2M",
    "dpmpp 2m ka": "DPM++ 2M Karras",
    "dpmpp 2m sde": "DPM++ 2M SDE",
    "dpmpp 3m sde": "DPM++ 3M SDE",
    "dpmpp sde": "DPM++ SDE",
    "dpmpp sde ka": "DPM++ SDE Karras",
}
# What A1111 means by the schedule type "Automatic".
_AUTOMATIC = {
    "DPM++ 2M": "Karras",
    "DPM++ SDE": "Karras",
    "DPM2": "Karras",
    "DPM2 a": "Karras",
    "DPM++ 2M SDE": "Exponential",
    "DPM++ 3M SDE": "Exponential",
}
_PLAIN_SCHEDULES = ("", "automatic", "uniform", "normal")


def find_sampler(name: str, schedule: str = "") -> Sampler:
    """The row of a sampler name, ours or that of another tool, with A1111's `Schedule type` if given apart.

    "Automatic" means what A1111 means by it (Karras for "DPM++ 2M"); an empty schedule leaves the name as is.
    Raises ConfigError that lists the names.
    """
    row = _by_spelling(name)
    wanted = _AUTOMATIC.get(row.name, "") if schedule.strip().casefold() == "automatic" else schedule.strip()
    if wanted.casefold() in _PLAIN_SCHEDULES or wanted.casefold() == row.spacing:
        return row
    found = SAMPLERS.get(f"{row.method} {wanted.capitalize()}")
    if found is None:
        have = [other.schedule for other in SAMPLERS.values() if other.method == row.method]
        raise ConfigError(
            f"the sampler '{row.method}' has no schedule type '{schedule}'; it has: {', '.join(have)}."
        )
    return found


def _by_spelling(name: str) -> Sampler:
    words = " ".join(name.replace("_", " ").casefold().split()).removeprefix("k ")
    known = {key.casefold(): row for key, row in SAMPLERS.items()}
    row = known.get(words) or SAMPLERS.get(_ALIASES.get(words, ""))
    if row is None:
        raise ConfigError(
            f"no sampler is called '{name}'. The samplers are:\n{listing(list(SAMPLERS), limit=99)}"
        )
    return row


def make_scheduler(name: str, config: Mapping[str, Any], *, seeds: Sequence[int] | None = None) -> Any:
    """A new diffusers scheduler for a base model, before `set_timesteps`.

    `config` is the scheduler config that the base was loaded with: its betas, prediction type,
    zero-terminal-SNR rescale and trailing spacing are kept; every option of a sampler comes from the table.
    Schedulers that know of no rescale get the rescaled betas. On a zero-terminal-SNR base a Karras or
    exponential spacing starts at pure noise and goes on from where Stable Diffusion's own schedule ends:
    spread up to a sigma of 4096 it would spend most steps on pure noise, and diffusers fails there on equal
    timesteps. `seeds`, one for each image of the batch, are what "DPM++ SDE" draws its Brownian noise from.

    Raises ConfigError for an unknown name, a prediction type other than epsilon and v_prediction, epsilon
    with zero terminal SNR (pure noise has no image in it to tell the noise from), and a seeded sampler
    without seeds.
    """
    row = find_sampler(name)
    facts = {key: config[key] for key in MODEL_FACTS if config.get(key) is not None}
    rescaled = bool(facts.get("rescale_betas_zero_snr"))
    _check(row, facts, rescaled, seeds)
    if row.even_start and facts.get("timestep_spacing") != "trailing":
        facts["timestep_spacing"] = "linspace"
    scheduler_class = _scheduler_class(row.name)
    accepted = inspect.signature(scheduler_class).parameters
    if rescaled and "rescale_betas_zero_snr" not in accepted:
        facts["trained_betas"] = _rescaled_betas(facts)
    options = {**row.options}
    if row.seeded:
        options["noise_sampler_seed"] = list(seeds or ())
    if row.spacing != "range":
        options[f"use_{row.spacing}_sigmas"] = True
    return scheduler_class(**{key: value for key, value in facts.items() if key in accepted}, **options)


def foresee(scheduler: Any, see: Callable[[Tensor], None]) -> None:
    """Has `see` called before each step of a scheduler with the finished latents (B, 4, h, w) that the
    network's answer to the noisy ones implies: x₀ = (x − √(1−ᾱ)·ε) / √ᾱ, or √ᾱ·x − √(1−ᾱ)·v.

    Source: Ho et al. 2020 (noise); Salimans & Ho 2022 (velocity).
    """
    step, known = scheduler.step, np.asarray(scheduler.alphas_cumprod, dtype=float)

    @wraps(step)  # pipelines look at its signature
    def told(model_output: Tensor, timestep: Any, sample: Tensor, *rest: Any, **more: Any) -> Any:
        level = float(np.interp(float(timestep), np.arange(len(known)), known))
        signal, spread = level**0.5, (1 - level) ** 0.5
        noisy = scheduler.scale_model_input(sample, timestep)
        if scheduler.config.prediction_type == "v_prediction":
            see(signal * noisy - spread * model_output)
        else:
            see((noisy - spread * model_output) / signal)
        return step(model_output, timestep, sample, *rest, **more)

    scheduler.step = told


def _check(row: Sampler, facts: Mapping[str, Any], rescaled: bool, seeds: Sequence[int] | None) -> None:
    prediction = facts.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise ConfigError(
            f"the base predicts '{prediction}'; samplers are made for 'epsilon' and 'v_prediction'. "
            "Load the base with the right prediction type."
        )
    if rescaled and prediction == "epsilon":
        raise ConfigError(
            "the base is set to predict epsilon with zero terminal SNR, which has no answer at pure noise. "
            "Load the base with prediction_type='v_prediction', or with zero_terminal_snr=False."
        )
    if row.seeded and not seeds:
        raise ConfigError(
            f"the sampler '{row.name}' draws its noise from seeds: give one seed for each image."
        )


def _rescaled_betas(facts: Mapping[str, Any]) -> list[float]:
    """The betas of the zero-terminal-SNR schedule, its last cumulative alpha 2^-24 in place of 0."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
    known = {key: facts[key] for key in keys if key in facts}
    alphas = DDPMScheduler(**known, rescale_betas_zero_snr=True).alphas_cumprod.double()
    alphas[-1] = NEAR_ZERO_ALPHA
    alphas[1:] = alphas[1:] / alphas[:-1].clone()
    return (1.0 - alphas).tolist()


@cache
def _scheduler_class(name: str) -> type:
    import diffusers

    row = SAMPLERS[name]
    # Mixins and not instances patched afterwards: some constructors already call set_timesteps.
    even = _ToLowestNoise if row.method == "DPM++ 2M" else _EvenSteps
    mixins = (_CpuNoise,) * row.seeded + ((even,) if row.spacing == "range" else (_FullRange,))
    return type(
        f"{row.scheduler_class}For{row.spacing.capitalize()}",
        (*mixins, getattr(diffusers, row.scheduler_class)),
        {},
    )


class _EvenSteps:
    """Refuses the step counts for which diffusers' trailing spacing has one timestep too many, and takes a
    single step from pure noise.

    Its arange(1000, 0, -1000 / steps) has 62 entries for 61 steps, the last of them rounded to timestep -1,
    which indexes pure noise. Its linspace(0, 999, 1) is the other end: timestep 0, almost without noise.
    """

    config: Any
    register_to_config: Callable[..., None]

    def set_timesteps(
        self, num_inference_steps: int, device: Any = None, num_train_timesteps: int | None = None
    ) -> None:
        total = self.config.num_train_timesteps
        if self.config.timestep_spacing == "trailing" and not _spaces_evenly(total, num_inference_steps):
            better = next(n for n in range(num_inference_steps, total + 1) if _spaces_evenly(total, n))
            raise ConfigError(
                f"{num_inference_steps} steps cannot be spaced evenly over {total} timesteps: rounding in "
                f"diffusers adds a step at timestep -1. Use {better} steps."
            )
        rest = () if num_train_timesteps is None else (num_train_timesteps,)
        spacing = self.config.timestep_spacing
        if num_inference_steps == 1 and spacing == "linspace":
            self.register_to_config(timestep_spacing="trailing")
        super().set_timesteps(num_inference_steps, device, *rest)  # type: ignore[misc]
        self.register_to_config(timestep_spacing=spacing)


class _ToLowestNoise(_EvenSteps):
    """Even steps from the last timestep down to the first, as k-diffusion's `get_sigmas` spaces them.

    diffusers spaces those of its multistep solvers for one step more and leaves the lowest out: of 25 steps
    the last would go from a sigma of 0.2 to 0 at once. Its other ones stay as they are: A1111 leaves the
    lowest of "DPM++ 3M SDE" and "UniPC" out as well, and that of "DPM++ 2M SDE" adds more noise in one such
    step than it takes away.
    """

    def set_timesteps(
        self, num_inference_steps: int, device: Any = None, num_train_timesteps: int | None = None
    ) -> None:
        if self.config.timestep_spacing != "linspace":
            return super().set_timesteps(num_inference_steps, device, num_train_timesteps)
        timesteps = np.linspace(self.config.num_train_timesteps - 1, 0, num_inference_steps).round()
        return super(_EvenSteps, self).set_timesteps(device=device, timesteps=timesteps)  # type: ignore[misc]


def _spaces_evenly(total: int, steps: int) -> bool:
    return len(np.arange(total, 0, -total / steps)) == steps


class _FullRange:
    """Karras and exponential sigmas over the whole range of the model, whatever the timestep spacing.

    diffusers takes the ends from the timesteps it would have used; trailing ones stop above the lowest sigma.
    """

    config: Any
    alphas_cumprod: Any
    num_inference_steps: int

    def _convert_to_karras(self, in_sigmas: Any, num_inference_steps: int | None = None) -> np.ndarray:
        # Equation 5 of Karras et al. 2022, rho = 7.
        return self._spread(num_inference_steps, lambda sigma: sigma ** (1 / 7), lambda value: value**7)

    def _convert_to_exponential(self, in_sigmas: Any, num_inference_steps: int | None = None) -> np.ndarray:
        return self._spread(num_inference_steps, np.log, np.exp)

    def _sigma_to_t(self, sigma: Any, log_sigmas: Any) -> Any:
        timestep = super()._sigma_to_t(sigma, log_sigmas)  # type: ignore[misc]
        # The only scheduler with exponential sigmas here truncates: 998.99 is to be 999, pure noise.
        return np.round(timestep) if self.config.use_exponential_sigmas else timestep

    def _spread(self, steps: int | None, forward: Any, backward: Any) -> np.ndarray:
        alphas = self.alphas_cumprod.double().numpy()
        sigmas = ((1 - alphas) / alphas) ** 0.5
        count = steps or self.num_inference_steps
        if sigmas[-1] < 100 * SD_SIGMA_MAX:
            return backward(np.linspace(forward(sigmas[-1]), forward(sigmas[0]), count))
        rest = backward(np.linspace(forward(SD_SIGMA_MAX), forward(sigmas[0]), count - 1))
        return np.concatenate([sigmas[-1:], rest])


class _CpuNoise:
    """Brownian noise drawn on the CPU, so that a seed means the same on every device."""

    noise_sampler: Any
    noise_sampler_seed: list[int]
    sigmas: Any

    def step(self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True) -> Any:
        if self.noise_sampler is None:
            self.noise_sampler = _brownian(sample, self.sigmas, self.noise_sampler_seed)
        return super().step(model_output, timestep, sample, return_dict=return_dict)  # type: ignore[misc]


def _brownian(sample: Any, sigmas: Any, seeds: list[int]) -> Any:
    from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

    if len(seeds) != sample.shape[0]:
        raise ConfigError(f"{len(seeds)} seeds were given for a batch of {sample.shape[0]} images.")
    # One percent wider than needed: torchsde warns of queries that rounding puts outside its interval.
    low, high = sigmas[sigmas > 0].min().item() * 0.99, sigmas.max().item() * 1.01
    tree = BrownianTreeNoiseSampler(sample.float().cpu(), low, high, seeds)
    return lambda sigma, following: tree(sigma, following).to(sample)
