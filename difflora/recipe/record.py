"""What an image was made of, and its exact JSON."""

import json
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from difflora.errors import ConfigError, RecipeError
from difflora.recipe.request import Request, explain

_FROZEN = ConfigDict(frozen=True, extra="forbid")
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class RecipeAdapter(BaseModel):
    """An adapter of the mix. It is found again by `data_hash`; `name` is for people."""

    model_config = _FROZEN

    name: str = Field(description="The name that the adapter had in its library.")
    data_hash: Sha256 = Field(
        description="What it is known by: the sha256 of its tensor data (AutoV3), 64 hex digits; of its "
        "scales too where its file has these elsewhere."
    )
    unet: FiniteFloat = Field(default=1.0, description="Its weight on the UNet.")
    text: FiniteFloat = Field(default=1.0, description="Its weight on the text encoders.")


class RecipeBase(BaseModel):
    """The base model: a short name, the sha256 of its weights ("" if it was not computed), and that of a VAE
    used in place of its own ("" if none was); what it was taken to predict, and whether with zero terminal
    SNR ("" and None if that was not recorded), which for some files only the user knows."""

    model_config = _FROZEN

    name: str = ""
    sha256: Literal[""] | Sha256 = ""
    vae_sha256: Literal[""] | Sha256 = ""
    prediction_type: Literal["", "epsilon", "v_prediction"] = ""
    zero_terminal_snr: bool | None = None


class Recipe(BaseModel):
    """Everything that one image was made of: the same recipe, machine and versions give the same pixels.

    `request` has the base's defaults filled in. `seed` is that of this image, number `batch_index` of
    `batch_size` images that were drawn together and shared `chunks` chunks of text; the numbers of a batch
    decide how sums are rounded, so a replay draws the batch again. In a grid the others may have had other
    mixes (`own_mix`), which a replay cannot draw again. `processor` is the name of the GPU, or the
    architecture of the CPU.
    """

    model_config = _FROZEN

    version: Literal[1] = 1
    request: Request
    adapters: tuple[RecipeAdapter, ...] = ()
    base: RecipeBase = RecipeBase()
    mode: Literal["merged", "live"] = "merged"
    dtype: str = "float32"
    device: str = "cpu"
    processor: str = ""
    threads: int = Field(default=1, ge=1, le=1024)
    batch_size: int = Field(default=1, ge=1, le=1024)
    batch_index: int = Field(default=0, ge=0)
    own_mix: bool = False
    chunks: int = Field(default=1, ge=1, le=1024)
    seed: int = Field(default=0, ge=0, le=2**64 - 1)
    versions: Mapping[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _index_in_batch(self) -> Self:
        if self.batch_index >= self.batch_size:
            raise ValueError(
                f"batch_index: {self.batch_index}, expected less than batch_size {self.batch_size}"
            )
        return self

    def to_json(self) -> str:
        """One line of ASCII that `from_json` turns into an equal recipe, floats to the last bit."""
        return json.dumps(self.model_dump(mode="json"), separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The recipe. Raises RecipeError that names what is wrong with the text."""
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RecipeError(f"the recipe is not JSON: {error}. It starts with {text[:40]!r}.") from error
        if not isinstance(content, dict):
            raise RecipeError(f"the recipe is not a JSON object: it starts with {text[:40]!r}.")
        if content.get("version") != 1:
            version = str(content.get("version"))[:40]
            raise RecipeError(
                f"the recipe has version {version}; this difflora reads version 1. Update difflora."
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise RecipeError(f"the recipe cannot be used:\n{explain(error)}") from error
        except ConfigError as error:
            raise RecipeError(f"the recipe cannot be used: {error}") from error
