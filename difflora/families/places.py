"""Where a base model comes from: a diffusers folder, one .safetensors file, or the Hub."""

import re
from dataclasses import dataclass
from pathlib import Path

from difflora.errors import BaseModelError

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True, slots=True)
class Folder:
    """A diffusers folder on this machine, with the short name of the model."""

    path: Path
    name: str


@dataclass(frozen=True, slots=True)
class File:
    """A single-file checkpoint on this machine, with the short name of the model."""

    path: Path
    name: str


@dataclass(frozen=True, slots=True)
class HubId:
    """A model on the Hub, such as `stabilityai/stable-diffusion-xl-base-1.0`."""

    id: str

    @property
    def name(self) -> str:
        """The part after the slash."""
        return self.id.split("/", 1)[1]


def locate(base: str | Path) -> Folder | File | HubId:
    """What `base` names. Raises BaseModelError if it is nothing that a base can be loaded from."""
    path = Path(base).expanduser()
    if path.is_dir():
        _require_model_index(path)
        return Folder(path, path.resolve().name)
    if path.suffix.lower() in _PICKLES:
        raise BaseModelError(
            f"{path} is a pickle, which runs code when it is opened, so it is not loaded. Get the model as "
            ".safetensors, or convert it in a tool that you trust."
        )
    if path.is_file():
        if path.suffix.lower() != ".safetensors":
            raise BaseModelError(
                f"{path}: expected a .safetensors checkpoint or a diffusers folder as the base model."
            )
        return File(path, path.stem)
    text = str(base)
    if _HUB_ID.fullmatch(text) and path.suffix != ".safetensors" and not path.parent.is_dir():
        return HubId(text)
    raise BaseModelError(
        f"{text}: there is no such file or folder. Give a diffusers folder, a .safetensors checkpoint, or "
        "the id of a model on the Hub such as 'stabilityai/stable-diffusion-xl-base-1.0'."
    )


def _require_model_index(path: Path) -> None:
    if (path / "model_index.json").is_file():
        return
    if (path / "adapter_config.json").is_file() or (path / "pytorch_lora_weights.safetensors").is_file():
        raise BaseModelError(
            f"{path} holds an adapter, not a base model. Give the base that it was trained on."
        )
    if (path / "config.json").is_file():
        raise BaseModelError(
            f"{path} is one component of a model. Give the folder above it, with model_index.json."
        )
    files = sorted(path.glob("*.safetensors"))
    hint = f" Did you mean the checkpoint {files[0]}?" if files else ""
    raise BaseModelError(
        f"{path} has no model_index.json, so it is no diffusers folder.{hint} Give a folder with "
        "model_index.json, or a .safetensors checkpoint."
    )
