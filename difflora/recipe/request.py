"""What to draw. Every field is a flag of the command line and a widget of the web UI."""

import unicodedata
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)

from difflora.errors import ConfigError
from difflora.samplers import SAMPLERS, find_sampler


def _plain_text(text: str) -> str:
    """Line ends as \\n; no characters that a PNG text or a terminal would trip over."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    for position, char in enumerate(text):
        if unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t":
            raise ValueError(
                f"character {position + 1} is the control character U+{ord(char):04X}: take it out"
            )
    return text


PromptText = Annotated[str, AfterValidator(_plain_text)]
Edge = Annotated[int, Field(ge=64, le=8192, multiple_of=8)]


class Request(BaseModel):
    """What to draw. None stands for the base model's own default. Names no adapters.

    Raises ConfigError that names every field with a value that cannot be used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: PromptText = Field(
        default="",
        description="What the image shows. `(word:1.2)` gives a word more or less weight, BREAK starts a new "
        "chunk of 75 tokens. Adapter tags are taken out of it before: see `resolve`.",
    )
    negative: PromptText = Field(
        default="",
        description="What the image is to keep away from, in the same syntax. Needs a guidance above 1.",
    )
    seed: int = Field(
        default=0, ge=0, le=2**32 - 1, description="Image i of a batch starts from noise of the seed + i."
    )
    steps: int = Field(default=25, ge=1, le=1000, description="Denoising steps: more are slower and finer.")
    guidance: FiniteFloat | None = Field(
        default=None,
        ge=0,
        le=100,
        description="How strongly the prompt is followed (CFG scale). At 1 or below the negative prompt is "
        "not used and each step costs half.",
    )
    guidance_rescale: FiniteFloat | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Takes back the excess contrast of guidance, 0 to 1. About 0.7 suits models with zero "
        "terminal SNR.",
    )
    sampler: str = Field(
        default="DPM++ 2M", description=f"How noise becomes an image, one of: {', '.join(SAMPLERS)}."
    )
    width: Edge | None = Field(default=None, description="Pixels, a multiple of 8.")
    height: Edge | None = Field(default=None, description="Pixels, a multiple of 8.")
    batch: int = Field(
        default=1,
        ge=1,
        le=64,
        description="How many images are drawn at once, with one seed each. Needs memory for each.",
    )
    clip_skip: int = Field(
        default=1,
        ge=1,
        le=12,
        description="Take the text from this layer of the text encoder, counted from its last. 1 is the "
        "model's own; some anime models are used with 2, which for SDXL is the model's own as well.",
    )
    eta: FiniteFloat | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Fresh noise in each step of the DDIM sampler, from 0 (none) to 1 (as DDPM).",
    )

    @field_validator("sampler")
    @classmethod
    def _known_sampler(cls, name: str) -> str:
        try:
            return find_sampler(name).name
        except ConfigError as error:
            raise ValueError(str(error)) from error  # to be named together with what else is wrong

    @model_validator(mode="after")
    def _steps_of_sampler(self) -> Self:
        limit = SAMPLERS[self.sampler].max_steps
        if self.steps > limit:
            raise ValueError(
                f"steps: the sampler '{self.sampler}' takes at most {limit} steps, got {self.steps}"
            )
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _raise_config_error(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            raise ConfigError(f"the request cannot be used:\n{explain(error)}") from error


def explain(error: ValidationError) -> str:
    """The problems of a pydantic model, one a line, with what was given."""
    lines = []
    for problem in error.errors():
        field = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        given = (
            "" if problem["type"] in ("missing", "value_error") else f", got {str(problem['input'])[:60]!r}"
        )
        lines.append("  " + (f"{field}: " if field else "") + message + given)
    return "\n".join(lines)
