"""Every training option in one flat model, and the presets that fill it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from difflora.data.buckets import assign_by
from difflora.data.options import DataOptions, UserPath
from difflora.errors import ConfigError
from difflora.families import identify
from difflora.inject import NetworkOptions
from difflora.training.checkpoint import CheckpointOptions
from difflora.training.loss import LossOptions
from difflora.training.optimizers import OptimizerOptions
from difflora.training.presets import PRESETS, preset_values
from difflora.training.preview import PreviewOptions
from difflora.training.schedules import ScheduleOptions

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Attention = Literal["auto", "sdpa", "xformers"]


class RunOptions(BaseModel):
    """What is trained on, where results go, and on which machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_model: str = Field(
        description="The base: a diffusers folder, a .safetensors checkpoint, or a Hub id."
    )
    output: UserPath = Field(description="Folder for the adapter, its checkpoints and its training.json.")
    name: str = Field(description="Name of the adapter: the file is OUTPUT/NAME.safetensors.")
    preset: str | None = Field(
        None,
        description=f"Starting values for a purpose: {', '.join(PRESETS)}. Any option given overrides them.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Everything random follows from this number.")
    precision: Precision = Field(
        "auto",
        description="Number format of the base while training, its VAE apart, which has fp32; auto: bf16 or "
        "fp16 on a GPU, fp32 on a CPU.",
    )
    save_dtype: Literal["float16", "float32", "bfloat16"] = Field(
        "float16", description="Number format of the factors in the finished file."
    )
    device: str | None = Field(None, description="cuda, cuda:1, mps or cpu. Default: the best there is.")
    threads: int | None = Field(
        None, ge=1, description="CPU threads; a resumed run uses those it began with."
    )
    attention: Attention = Field("auto", description="Attention implementation.")
    gradient_checkpointing: bool = Field(
        False,
        description="Computes activations twice and keeps few: far less memory, about a third slower.",
    )
    clip_skip: int = Field(
        1, ge=1, le=12, description="Text layer counted from the end, as A1111 does; 1 is the base's own."
    )
    vae: str | None = Field(None, description="Another VAE: a file or a folder.")
    prediction_type: Literal["epsilon", "v_prediction"] | None = Field(
        None, description="What the base predicts. Default: read from the base."
    )
    zero_terminal_snr: bool | None = Field(
        None, description="Whether the base was trained with zero terminal SNR. Default: read from the base."
    )
    tensorboard: bool = Field(
        True, description="Writes loss and learning rate to OUTPUT/logs/NAME for TensorBoard."
    )

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if (
            not name.strip()
            or name != Path(name).name
            or name.startswith(".")
            or any(c in name for c in '<>:"|?*\\')
        ):
            raise ValueError(f"{name!r} cannot be a file name; use letters, digits, '-' and '_'")
        return name


class TrainConfig(
    PreviewOptions,
    CheckpointOptions,
    LossOptions,
    ScheduleOptions,
    OptimizerOptions,
    NetworkOptions,
    DataOptions,
    RunOptions,
):
    """Every training option. Frozen; unknown fields are refused. `configure` fills it from a preset."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give the length of the training as either steps or epochs")
        if not (self.train_unet or self.train_text_encoder):
            raise ValueError("train_unet and train_text_encoder are both off: nothing would be trained")
        if self.preservation and not self.trigger:
            raise ValueError("preservation needs a trigger: the words without which the base stays as it is")
        if self.preservation_class and not self.preservation:
            raise ValueError("preservation_class has no effect without preservation")
        return self

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if self.resolution is not None:  # else it is the base's own, and seen when that is loaded
            try:
                assign_by((), self, native=self.resolution)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return self


def configure(values: Mapping[str, Any]) -> TrainConfig:
    """A TrainConfig from given values; what is not given comes from the preset for this base, then from the
    defaults.

    The base is only looked at (its configuration files or header), not loaded.
    Raises ConfigError naming every field that is wrong, BaseModelError if the base cannot be identified.
    """
    preset = values.get("preset")
    merged = dict(values)
    if preset is not None:
        if preset not in PRESETS:
            raise ConfigError(f"preset={preset!r} is not known; use one of: {', '.join(PRESETS)}")
        if "base_model" not in values:
            raise ConfigError("a preset depends on the base model: give base_model as well")
        merged = {**preset_values(str(preset), identify(str(values["base_model"])).variant), **values}
        if values.get("epochs") is not None and values.get("steps") is None:
            merged.pop("steps", None)
    try:
        return TrainConfig(**merged)
    except ValidationError as error:
        raise ConfigError(_readable(error)) from error


def _readable(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        field = ".".join(str(part) for part in problem["loc"]) or "options"
        given = "" if problem["type"] in ("missing", "value_error") else f" (got {problem['input']!r})"
        lines.append(f"  {field}: {problem['msg'].removeprefix('Value error, ')}{given}")
    return "the training options cannot be used:\n" + "\n".join(lines)
