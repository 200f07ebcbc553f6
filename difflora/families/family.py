"""A family of base models: data about names, and nothing about shapes, which belong to a loaded Model."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from difflora.families.namings import NAMINGS, own_names
from difflora.families.spellings import Naming, Slices, whole
from difflora.families.tables import unpack

ASSETS = Path(__file__).parent / "assets"
"""Component configs and module paths of the real models, one folder a variant, and CLIP's vocabulary."""

_TEXT_LEVEL = "text_model."

# Text modules that have the level already, or are none of CLIP's text model; T5 has no such level.
_NOT_BARE = (
    _TEXT_LEVEL,
    "text_projection",
    "shared",
    "encoder.block.",
    "encoder.embed_tokens",
    "encoder.final_layer_norm",
)


@dataclass(frozen=True, slots=True)
class Original:
    """Where a component lies in a single-file checkpoint: the prefix of its tensors, and their naming."""

    prefix: str
    naming: Naming


@dataclass(frozen=True, slots=True)
class Component:
    """A part of a base model that adapters change, under its name in the diffusers pipeline.

    Flattened names of kohya files are written with `kohya_prefix`; `kohya_aliases` are read as well, and
    stand for the beginnings of dotted names too. A single-file checkpoint has the component in one of the
    `originals`.
    """

    name: str
    kohya_prefix: str
    is_text: bool
    originals: tuple[Original, ...]
    kohya_aliases: tuple[str, ...] = ()

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Everything that a module's name may begin with, flattened; "" for names without a component."""
        if self.is_text:
            return (self.kohya_prefix, self.name, *self.kohya_aliases)
        return (self.kohya_prefix, self.name, f"lora_{self.name}", *_OF_THE_DENOISER, *self.kohya_aliases)


# kohya's OFT, LyCORIS on its own, ComfyUI's own names, whole checkpoints, and files of one model alone.
_OF_THE_DENOISER = ("oft_unet", "lycoris", "diffusion_model", "model_diffusion_model", "")


@dataclass(frozen=True, slots=True)
class Special:
    """An original module that holds `slices` where it has `rows` rows, and otherwise what its name says."""

    original: str
    rows: int
    slices: Slices


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
    usual number format of the others on a GPU. `kohya_uses_originals`: whether kohya files name the modules
    of the denoiser as original checkpoints do. `loads`: whether bases of this family can be loaded; of the
    others difflora handles adapter files only.
    """

    name: str
    title: str
    components: tuple[Component, ...]
    variants: tuple[str, ...]
    pipeline_class: str
    text: TextSpec
    marker: str
    kohya_uses_originals: bool
    vae_overflows: bool
    gpu_dtype: Literal["float16", "bfloat16"]
    specials: tuple[Special, ...] = ()
    loads: bool = True

    @cached_property
    def paths(self) -> frozenset[str]:
        """Every parametrised module path of any variant: projections, convolutions, norms and embeddings."""
        return frozenset(path for variant in self.variants for path in path_table(variant))

    def slices(self, name: str, *, rows: int | None = None) -> Slices:
        """What the rows of a module are, by its name in a file, whole; () if the family has no such module.

        Takes flattened and dotted names with any known prefix; `rows` is the number of the module's output
        rows, which a few names need. Look-ups only: "_" is ambiguous, so no name is taken apart.
        """
        flat = name.replace(".", "_")
        if rows is not None and (flat, rows) in self._special:
            return self._special[flat, rows]
        return self._spellings.get(flat, ())

    def whole_path(self, name: str) -> str | None:
        """The path of which a module, by its name in a file, is all the rows, however many; None if it is not
        that of one."""
        return self._whole.get(name.replace(".", "_"))

    def paths_of(self, name: str) -> tuple[str, ...]:
        """The paths that a module stands for, by its name in a file; () if the family has no such module."""
        return tuple(dict.fromkeys(one.path for one in self.slices(name)))

    @cached_property
    def kohya_names(self) -> Mapping[str, str]:
        """Accepted flattened name -> path, of every name that is one whole module."""
        return MappingProxyType(
            {name: slices[0].path for name, slices in self._spellings.items() if slices[0].is_whole}
        )

    @cached_property
    def fused(self) -> Mapping[str, Slices]:
        """Accepted flattened name -> what it holds, of every name that is not one whole module."""
        return MappingProxyType(
            {name: slices for name, slices in self._spellings.items() if not slices[0].is_whole}
        )

    def kohya_name(self, path: str) -> str:
        """The flattened name under which `path` alone is written. Raises KeyError if there is no such path.

        A module that kohya files hold only as part of another, or with its halves swapped (in some sizes of
        the model at least), has the name that OneTrainer writes and ComfyUI reads: `lora_transformer_` and
        its own.
        """
        name, slices = self.kohya_group(path)
        if slices[0].is_whole and all(name != special for special, _ in self._special):
            return name
        return _flatten(f"lora_{self.component(path).name}", _inner(path))

    def kohya_group(self, path: str, *, rows: int | None = None) -> tuple[str, Slices]:
        """The module of a kohya file that holds `path`: its flattened name, and what its rows are.

        `rows` is the number of output rows of `path`. Raises KeyError if there is no such path.
        """
        if path not in self.paths:
            raise KeyError(path)
        name = self._written[path]
        return name, self._special.get((name, rows or 0), self._spellings[name])

    def component(self, path: str) -> Component:
        """The component that `path` belongs to. Raises KeyError if the family has none of that name."""
        name = path.split(".", 1)[0]
        for part in self.components:
            if part.name == name:
                return part
        raise KeyError(name)

    @cached_property
    def _whole(self) -> Mapping[str, str]:
        """Accepted flattened name -> path, of every name that is one whole module for any number of rows."""
        special = {name for name, _ in self._special}
        names = self.kohya_names.items()
        return MappingProxyType({name: path for name, path in names if name not in special})

    @cached_property
    def _spellings(self) -> Mapping[str, Slices]:
        return MappingProxyType(dict(self._pairs()))

    def _pairs(self) -> Iterator[tuple[str, Slices]]:
        """Every accepted flattened name and what it holds; of two with one name the later counts."""
        for part in self.components:
            for dotted, slices in self._dotted(part):
                yield from ((_flatten(prefix, dotted), slices) for prefix in part.prefixes)

    @cached_property
    def _special(self) -> Mapping[tuple[str, int], Slices]:
        (denoiser,) = (part for part in self.components if not part.is_text)
        return MappingProxyType(
            {
                (_flatten(prefix, one.original), one.rows): _within(denoiser.name, one.slices)
                for one in self.specials
                for prefix in denoiser.prefixes
            }
        )

    @cached_property
    def _written(self) -> Mapping[str, str]:
        """Path -> the flattened name of the module of a kohya file that holds it."""
        names: dict[str, str] = {}
        for part in self.components:
            inner = [_inner(path) for path in self.paths if path.startswith(f"{part.name}.")]
            originals = not part.is_text and self.kohya_uses_originals
            naming = NAMINGS[part.originals[0].naming] if originals else own_names
            for dotted, slices in naming(inner).items():
                for one in slices:
                    # The first name that a naming gives to rows is the one that is written.
                    names.setdefault(f"{part.name}.{one.path}", _flatten(part.kohya_prefix, dotted))
        return MappingProxyType(names)

    def _dotted(self, part: Component) -> Iterator[tuple[str, Slices]]:
        """Every dotted name of a module of a component, without a prefix, and what it holds."""
        inner = sorted(_inner(path) for path in self.paths if path.startswith(f"{part.name}."))
        for original in part.originals:
            for name, slices in NAMINGS[original.naming](inner).items():
                yield name, _within(part.name, slices)
                yield from _numbered(name, _within(part.name, slices))
        for name in inner:
            own = whole(f"{part.name}.{name}")
            yield from ((name.removeprefix(_TEXT_LEVEL), own), (name, own))


def path_table(variant: str) -> tuple[str, ...]:
    """Every parametrised module path of one variant, in the model's order."""
    table = json.loads((ASSETS / variant / "paths.json").read_text(encoding="utf-8"))
    return tuple(f"{component}.{name}" for component, names in table.items() for name in unpack(names))


def canonical_names(names: Iterable[str], component: str) -> dict[str, str]:
    """Name inside a component, as the installed library has it -> name as files have it, with `text_model.`.

    transformers 5 dropped that level from CLIPTextModel and kept it in CLIPTextModelWithProjection.
    """
    if not component.startswith("text_encoder"):
        return {name: name for name in names}
    return {name: name if name.startswith(_NOT_BARE) else _TEXT_LEVEL + name for name in names}


def _numbered(name: str, slices: Slices) -> Iterator[tuple[str, Slices]]:
    """The parts of a module that is several in one, each under its number, as OMI's names have them."""
    paths = [one.path for one in slices]
    if len(set(paths)) == len(paths) > 1:
        yield from ((f"{name}.{number}", whole(path)) for number, path in enumerate(paths))


def _within(component: str, slices: Slices) -> Slices:
    return tuple(replace(one, path=f"{component}.{one.path}") for one in slices)


def _inner(path: str) -> str:
    return path.split(".", 1)[1]


def _flatten(prefix: str, dotted: str) -> str:
    flat = dotted.replace(".", "_")
    return f"{prefix}_{flat}" if prefix else flat


def variant_folder(variant: str, prediction_type: str) -> Path:
    """The component configs of a variant; one with a v-prediction sibling has a folder `<variant>-v` too."""
    own = ASSETS / f"{variant}-v"
    return own if prediction_type == "v_prediction" and own.is_dir() else ASSETS / variant
