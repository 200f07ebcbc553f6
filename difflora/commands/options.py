"""Options that several verbs share, and how a base, adapters and requests are made of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import tyro
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from difflora.errors import ConfigError

if TYPE_CHECKING:
    from difflora.adapter import Adapter, Weight
    from difflora.apply import Mode
    from difflora.families import Model
    from difflora.library import Library

Built = TypeVar("Built", bound=BaseModel)

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
# Numbers are taken from the right: the colon of a Windows drive stays with the file.
_ADAPTER = re.compile(rf"(?P<file>.+?)(?::(?P<weight>{_NUMBER}))?(?::(?P<text>{_NUMBER}))?")
_TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class BaseOptions(BaseModel):
    """The base model, and where it computes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_model: str = Field(description="A diffusers folder, a .safetensors checkpoint, or a Hub id.")
    device: str | None = Field(None, description="cuda, cuda:1, mps or cpu. Default: the best there is.")
    dtype: Literal["auto", "fp32", "bf16", "fp16", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Number format of the weights; auto: fp32 on a CPU, fp16 or bf16 on a GPU."
    )
    attention: Literal["auto", "sdpa", "xformers"] = Field("auto", description="Attention implementation.")
    vae: str | None = Field(None, description="Another VAE: a file or a folder.")
    offload: bool = Field(False, description="Keep on the GPU only what computes: for cards of 8 GB.")
    prediction_type: Literal["epsilon", "v_prediction"] | None = Field(
        None, description="What the base predicts. Default: read from the base."
    )
    zero_terminal_snr: bool | None = Field(
        None, description="Whether the base was trained with zero terminal SNR. Default: read from the base."
    )

    def load(self) -> Model:
        """The base, loaded. Raises what `difflora.load` raises."""
        from difflora.families import load

        return load(
            self.base_model,
            device=self.device,
            dtype=None if self.dtype == "auto" else _TORCH_NAMES.get(self.dtype, self.dtype),
            prediction_type=self.prediction_type,
            zero_terminal_snr=self.zero_terminal_snr,
            vae=self.vae,
            attention=self.attention,
            offload=self.offload,
        )


class AdapterOptions(BaseModel):
    """Which adapters act, and how strongly."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adapters: Path | None = Field(
        None,
        description="Folder of adapters for <lora:NAME:WEIGHT> tags in the prompt and for --adapter NAME.",
    )
    adapter: tyro.conf.UseAppendAction[tuple[str, ...]] = Field(
        (),
        description="FILE[:weight[:text]], may be repeated: the weight on the UNet, and on the text encoders "
        "where that differs. Also NAME[:weight[:text]] of the folder.",
    )
    mode: Literal["auto", "merged", "live"] = Field(
        "auto", description="merged: into the weights, exact and fast; live: beside them (bf16)."
    )

    @property
    def chosen_mode(self) -> Mode | None:
        """The mode asked for; None leaves it to the model."""
        return None if self.mode == "auto" else self.mode

    def library(self) -> Library | None:
        """The folder of adapters; None if there is none."""
        from difflora.library import Library

        return None if self.adapters is None else Library(self.adapters)

    def entries(self, library: Library | None) -> list[tuple[Adapter, Weight]]:
        """The adapters given one by one. Raises ConfigError or AdapterFileError if one cannot be read."""
        return [_entry(text, library) for text in self.adapter]


@dataclass(frozen=True, slots=True)
class AdapterWords:
    """An adapter as it is written on the command line, taken apart."""

    file: str
    weight: float
    text: float


def split_adapter(words: str) -> AdapterWords:
    """FILE[:weight[:text]]: without weight 1, without text the weight for both. Raises ConfigError."""
    match = _ADAPTER.fullmatch(words)
    if match is None:
        raise ConfigError("an adapter without a name; expected FILE[:weight[:text]]")
    weight = float(match["weight"] or 1.0)
    return AdapterWords(match["file"], weight, weight if match["text"] is None else float(match["text"]))


def _entry(words: str, library: Library | None) -> tuple[Adapter, Weight]:
    from difflora.adapter import Weight
    from difflora.formats import read
    from difflora.formats.sources import is_there

    given = split_adapter(words)
    dial = Weight(given.weight, given.text)
    path = Path(given.file).expanduser()
    if is_there(path):
        return read(path), dial
    if library is not None:
        return library.get(given.file), dial
    raise ConfigError(
        f"adapter {words}: there is no adapter file or folder {path}. Expected FILE[:weight[:text]]; for the "
        "name of an adapter in a folder give --adapters FOLDER as well."
    )


def build(model: type[Built], values: Mapping[str, Any]) -> Built:
    """A model from given values. Raises ConfigError naming every field that is wrong."""
    try:
        return model(**values)
    except ValidationError as error:
        problems = [
            f"  --{'.'.join(map(str, problem['loc'])).replace('_', '-')}: "
            f"{problem['msg'].removeprefix('Value error, ')} (got {problem['input']!r})"
            for problem in error.errors()
        ]
        raise ConfigError("these options cannot be used:\n" + "\n".join(problems)) from error
