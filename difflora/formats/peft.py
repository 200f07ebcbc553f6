"""Folders as PEFT saves them: `adapter_model.safetensors` beside `adapter_config.json`.

    unet.mid_block.attentions.0.proj_in  <->  base_model.model.mid_block.attentions.0.proj_in.lora_A.weight

A folder is about one model; an adapter of several is a folder of such folders, `unet`, `text_encoder` ...,
as PEFT's own scripts write them. Among its tensors are whole weights that take the place of the base's
(`modules_to_save`). alpha, and whether it is divided by the root of the rank, are in the configuration.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from difflora.adapter import Adapter
from difflora.errors import AdapterFileError
from difflora.families import Family
from difflora.formats.diffusers import modern
from difflora.formats.format import Encoded, Format, Metadata, Part, Scale
from difflora.formats.peft_config import METADATA_KEY, config_text, scales
from difflora.formats.peft_modules import encoded_modules
from difflora.formats.suffixes import dotted
from difflora.kinds import Kind, LoKr, ScaleOf

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
MAX_CONFIG = 4 << 20

_LEVEL = "base_model.model."
_WHOLE = {"weight": "set_weight", "bias": "set_bias"}
_WRAPPED = (".base_layer", ".modules_to_save.default", ".modules_to_save")

# The class that a configuration says its model has -> component.
_CLASSES = {
    "UNet2DConditionModel": "unet",
    "CLIPTextModel": "text_encoder",
    "CLIPTextModelWithProjection": "text_encoder_2",
    "SD3Transformer2DModel": "transformer",
    "FluxTransformer2DModel": "transformer",
}
_TEXT_WORDS = (".self_attn.", ".mlp.fc", "text_model.")


@dataclass(frozen=True, slots=True)
class PeftFolder:
    """One folder with a configuration; `component` is "" until its tensors are known, if it does not say."""

    folder: Path
    component: str
    config: Mapping[str, Any]


def folders_of(path: Path) -> tuple[PeftFolder, ...]:
    """The PEFT folders that `path` is or holds, sorted by component; none if it is something else.

    The safetensors file of a folder stands for the folder. Raises AdapterFileError if a configuration cannot
    be read.
    """
    if path.name == TENSORS:
        path = path.parent
    return tuple(_folder(one, "" if one == path else one.name) for one in configured(path))


def configured(path: Path) -> list[Path]:
    """The folders with a configuration that `path` is or holds, sorted, whatever their tensors are in."""
    return [path] if (path / CONFIG).is_file() else _inside(path)


def _inside(path: Path) -> list[Path]:
    """The folders inside a folder that have a configuration, sorted."""
    try:
        return (
            sorted(child for child in path.iterdir() if (child / CONFIG).is_file()) if path.is_dir() else []
        )
    except OSError as error:
        raise AdapterFileError(f"{path}: cannot be looked into: {error.strerror}") from error


def strangers(target: Path, components: Collection[str]) -> list[str]:
    """The configurations that lie where an adapter of these components is to be written, but are no part of
    it: a reader would take them for it."""
    own = {target} if len(components) == 1 else {target / component for component in components}
    there = [folder for folder in (target, *_inside(target)) if (folder / CONFIG).is_file()]
    return [str(folder / CONFIG) for folder in there if folder not in own and (target not in own)]


def _folder(path: Path, component: str) -> PeftFolder:
    if not (path / TENSORS).exists() and (path / PICKLE).exists():
        raise AdapterFileError(
            f"{path}: its tensors are a Python pickle, {PICKLE}, which is not opened. Expected {TENSORS}; to "
            "take them out, in a process of its own, into one file beside the folder, run: difflora convert "
            f'"{path / PICKLE}"'
        )
    config = _config(path / CONFIG)
    mapping = config.get("auto_mapping")
    stated = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    return PeftFolder(path, component or _CLASSES.get(str(stated), ""), config)


def _config(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise AdapterFileError(
                f"{path}: is larger than {MAX_CONFIG >> 20} MiB, so it is no configuration"
            )
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterFileError(f"{path}: cannot be read as JSON: {str(error)[:200]}") from error
    if not isinstance(config, dict):
        raise AdapterFileError(f"{path}: is not a JSON object")
    return config


@dataclass(frozen=True, slots=True)
class Contents:
    """What the folder of one component holds."""

    component: str
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]


def components(encoded: Encoded) -> list[Contents]:
    """What `Peft.encode` made, by component."""
    config = json.loads(encoded.metadata[METADATA_KEY])
    names = sorted({name.partition("/")[0] for name in encoded.tensors})
    return [
        Contents(
            component,
            {
                name.removeprefix(f"{component}/"): tensor
                for name, tensor in encoded.tensors.items()
                if name.startswith(f"{component}/")
            },
            {
                "auto_mapping": _mapping(component),
                **{
                    key.removeprefix(f"{component}."): value
                    for key, value in config.items()
                    if key.startswith(f"{component}.")
                },
            },
        )
        for component in names
    ]


def _mapping(component: str) -> dict[str, str] | None:
    """How PEFT notes the class of a model that is none of transformers' tasks."""
    return next(({"base_model_class": name} for name, own in _CLASSES.items() if own == component), None)


def located(folder: PeftFolder, names: Collection[str]) -> PeftFolder:
    """The folder with its component, which the names of its tensors give away if nothing else does."""
    if folder.component:
        return folder
    text = any(word in name for name in names for word in _TEXT_WORDS)
    return replace(folder, component="text_encoder" if text else "unet")


def outer(component: str, name: str) -> str:
    """What a tensor of a component's folder is called beside those of the others."""
    return f"{component}/{name}"


def configuration(folders: Sequence[PeftFolder]) -> str:
    """The configurations of several components in the one text that diffusers has for them."""
    return json.dumps(
        {f"{one.component}.{key}": value for one in folders for key, value in one.config.items()}
    )


def data_hash(hashes: Sequence[str]) -> str:
    """The identity of an adapter in several files: that of the one, or the sha256 of all, in their order."""
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


class Peft(Format):
    """A folder a component, each with one file of tensors and its configuration."""

    name: ClassVar[str] = "peft"
    title: ClassVar[str] = "PEFT folder"
    is_folder: ClassVar[bool] = True

    @classmethod
    def recognises(cls, names: Collection[str], metadata: Metadata) -> bool:
        """Whether the tensors are those of a PEFT folder."""
        return METADATA_KEY in metadata and any(f"/{_LEVEL}" in name for name in names)

    @classmethod
    def part(cls, name: str) -> Part | None:
        """Split before the spelling of the leaf; a tensor without one is a whole weight or bias."""
        component, _, inner = name.partition("/")
        if not inner.startswith(_LEVEL):
            return None
        inner = inner.removeprefix(_LEVEL)
        if part := dotted(inner):
            return Part(modern(f"{component}.{part.module}"), part.leaf)
        module, _, last = inner.rpartition(".")
        for level in _WRAPPED:
            module = module.removesuffix(level)
        return Part(f"{component}.{module}", _WHOLE[last]) if module and last in _WHOLE else None

    @classmethod
    def scale(cls, metadata: Metadata, modules: Collection[str]) -> Scale:
        """From the configuration."""
        return scales(metadata, modules)

    @classmethod
    def settled(cls, kinds: tuple[Kind, ...], scale: ScaleOf) -> tuple[Kind, ...]:
        """PEFT scales a LoKr of two whole factors as well."""
        return tuple(
            kind.times(factor)
            if isinstance(kind, LoKr) and kind.rank is None and (factor := scale(0)) != 1.0
            else kind
            for kind in kinds
        )

    @classmethod
    def encode(cls, adapter: Adapter, family: Family) -> Encoded:
        """down and up as they are, whole weights, and the configuration that gives each its scale."""
        modules = encoded_modules(adapter, cls.title, whole=True)
        tensors: dict[str, Tensor] = {}
        for path, module in modules.items():
            component, _, inner = path.partition(".")
            for last, tensor in {**module.factors, **module.whole}.items():
                tensors[outer(component, f"{_LEVEL}{inner}.{last}")] = tensor
        return Encoded(tensors, {METADATA_KEY: config_text(modules)})
