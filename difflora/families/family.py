"""A family of base models: data about names, and nothing about shapes, which belong to a loaded Model."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from difflora.families.sgm import sgm_names

ASSETS = Path(__file__).parent / "assets"
"""Component configs and module paths of the real models, one folder a variant, and CLIP's vocabulary."""

_TEXT_LEVEL = "text_model."


Naming = Literal["sgm", "clip", "open_clip"]


@dataclass(frozen=True, slots=True)
class Original:
    """Where a component lies in a single-file checkpoint: the prefix of its tensors, and their naming."""

    prefix: str
    naming: Naming


@dataclass(frozen=True, slots=True)
class Component:
    """A part of a base model that adapters change, under its name in the diffusers pipeline.

    Flattened names of kohya files are written with `kohya_prefix`; `kohya_aliases` are read as well. A
    single-file checkpoint has the component in one of the `originals`.
    """

    name: str
    kohya_prefix: str
    is_text: bool
    originals: tuple[Original, ...]
    kohya_aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TextSpec:
    """How text becomes the UNet's condition; the states of all text encoders are joined along features.

    `default_skip` layers at the end are left out at clip skip 1: 0 takes the last hidden state, 1 the one
    before. `final_norm`: whether the encoder's final layer norm is applied to the state that is taken.
    `pooled_from`: the component whose projected pooled output is the second condition, or None.
    """

    default_skip: int
    final_norm: bool
    pooled_from: str | None


@dataclass(frozen=True)
class Family:
    """One family of base models, such as everything with the architecture of SDXL.

    `variants` name folders of component configs in `assets/`, each with a table of module paths; `marker` is
    a tensor that only single-file checkpoints of this family have. `vae_overflows`: whether its VAE needs
    more range than float16 has, unless the VAE's own config denies it (`force_upcast`). `gpu_dtype` is the
    usual number format of the others on a GPU.
    """

    name: str
    title: str
    components: tuple[Component, ...]
    variants: tuple[str, ...]
    pipeline_class: str
    text: TextSpec
    marker: str
    kohya_uses_sgm: bool
    vae_overflows: bool
    gpu_dtype: Literal["float16", "bfloat16"]

    @cached_property
    def paths(self) -> frozenset[str]:
        """Every parametrised module path of any variant: projections, convolutions, norms and embeddings."""
        return frozenset(path for variant in self.variants for path in path_table(variant))

    @cached_property
    def sgm_paths(self) -> Mapping[str, str]:
        """UNet path -> the same module's dotted name in original (SGM) checkpoints, without a prefix."""
        inner = {path.removeprefix("unet."): path for path in self.paths if path.startswith("unet.")}
        return MappingProxyType({inner[name]: sgm for name, sgm in sgm_names(inner).items()})

    @cached_property
    def kohya_names(self) -> Mapping[str, str]:
        """Accepted flattened name (a key up to its first dot) -> path. For look-ups only: "_" is ambiguous.

        Takes diffusers and SGM names of UNet modules, and text names with and without `text_model`.
        """
        return MappingProxyType(
            {spelling: path for path in sorted(self.paths) for spelling in self._spellings(path)}
        )

    def kohya_name(self, path: str) -> str:
        """The one flattened name that is written for `path`. Raises KeyError if there is no such path."""
        if path not in self.paths:
            raise KeyError(path)
        part = self.component(path)
        dotted = self.sgm_paths[path] if self.kohya_uses_sgm and not part.is_text else _inner(path)
        return _flatten(part.kohya_prefix, dotted)

    def component(self, path: str) -> Component:
        """The component that `path` belongs to. Raises KeyError if the family has none of that name."""
        name = path.split(".", 1)[0]
        for part in self.components:
            if part.name == name:
                return part
        raise KeyError(name)

    def _spellings(self, path: str) -> Iterator[str]:
        part = self.component(path)
        dotted = {_inner(path), _inner(path).removeprefix(_TEXT_LEVEL)}
        if not part.is_text:
            dotted.add(self.sgm_paths[path])
        for prefix in (part.kohya_prefix, *part.kohya_aliases):
            yield from (_flatten(prefix, name) for name in dotted)


def path_table(variant: str) -> tuple[str, ...]:
    """Every parametrised module path of one variant, in the model's order."""
    table: dict[str, list[str]] = json.loads((ASSETS / variant / "paths.json").read_text(encoding="utf-8"))
    return tuple(f"{component}.{name}" for component, names in table.items() for name in names)


def canonical_names(names: Iterable[str], component: str) -> dict[str, str]:
    """Name inside a component, as the installed library has it -> name as files have it, with `text_model.`.

    transformers 5 dropped that level from CLIPTextModel and kept it in CLIPTextModelWithProjection.
    """
    if not component.startswith("text_encoder"):
        return {name: name for name in names}
    return {
        name: name if name.startswith((_TEXT_LEVEL, "text_projection")) else _TEXT_LEVEL + name
        for name in names
    }


def _inner(path: str) -> str:
    return path.split(".", 1)[1]


def _flatten(prefix: str, dotted: str) -> str:
    return f"{prefix}_{dotted.replace('.', '_')}"


def variant_folder(variant: str, prediction_type: str) -> Path:
    """The component configs of a variant; one with a v-prediction sibling has a folder `<variant>-v` too."""
    own = ASSETS / f"{variant}-v"
    return own if prediction_type == "v_prediction" and own.is_dir() else ASSETS / variant
