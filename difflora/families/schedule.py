"""The scheduler of a loaded base: the facts of the model, from which every sampler is made."""

from collections.abc import Mapping
from typing import Any

from difflora.families.model import BaseFacts

# What a scheduler's config says of the model; the rest of it is the taste of one sampler.
_FACTS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "timestep_spacing",
)


def base_scheduler(config: Mapping[str, Any], facts: BaseFacts) -> Any:
    """A DDIMScheduler with the noise levels of `config`, of any class, and the prediction of `facts`."""
    from diffusers import DDIMScheduler

    kept: dict[str, Any] = {key: config[key] for key in _FACTS if config.get(key) is not None}
    kept |= {"prediction_type": facts.prediction_type, "rescale_betas_zero_snr": facts.zero_terminal_snr}
    if facts.zero_terminal_snr:
        # Only trailing steps begin at the last timestep, the one without any signal.
        kept["timestep_spacing"] = "trailing"
    return DDIMScheduler(**kept, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
