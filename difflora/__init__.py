"""Trains adapters for diffusion models, draws with any weighted mix of them, and does arithmetic on them.

The names below are the public ones. Each is imported when first asked for, so `import difflora` is quick.
"""

import sys
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from difflora.adapter import Adapter, AdapterMeta, Stack, Weight, same
    from difflora.algebra import (
        bake,
        compare,
        extract,
        heat_map,
        interference,
        merge,
        negate,
        profile,
        resize,
        scale,
    )
    from difflora.apply import applied
    from difflora.data.survey import Survey, survey
    from difflora.encode import token_count
    from difflora.errors import AlreadyTrained, DiffloraError, Interrupted
    from difflora.families import Model, Usage, identify, load, outline, usage
    from difflora.fit import FitReport, fits
    from difflora.formats import FileReport, inspect, read, write
    from difflora.generate import generate, replay
    from difflora.grid import Axis, grid
    from difflora.latent_colours import LatentColours
    from difflora.library import Library, LibraryEntry, resolve
    from difflora.recipe import Recipe, Request, read_parameters, read_recipe, save_png
    from difflora.samplers import SAMPLERS
    from difflora.training.config import TrainConfig, configure
    from difflora.training.loop import StepReport, train
    from difflora.training.presets import PRESETS

    __version__: str

__all__ = [
    "PRESETS",
    "SAMPLERS",
    "Adapter",
    "AdapterMeta",
    "AlreadyTrained",
    "Axis",
    "DiffloraError",
    "FileReport",
    "FitReport",
    "Interrupted",
    "LatentColours",
    "Library",
    "LibraryEntry",
    "Model",
    "Recipe",
    "Request",
    "Stack",
    "StepReport",
    "Survey",
    "TrainConfig",
    "Usage",
    "Weight",
    "__version__",
    "applied",
    "bake",
    "compare",
    "configure",
    "extract",
    "fits",
    "generate",
    "grid",
    "heat_map",
    "identify",
    "inspect",
    "interference",
    "load",
    "merge",
    "negate",
    "outline",
    "profile",
    "read",
    "read_parameters",
    "read_recipe",
    "replay",
    "resize",
    "resolve",
    "same",
    "save_png",
    "scale",
    "survey",
    "token_count",
    "train",
    "usage",
    "write",
]

_NAMES = {
    "adapter": ("Adapter", "AdapterMeta", "Stack", "Weight", "same"),
    "algebra": (
        "bake",
        "compare",
        "extract",
        "heat_map",
        "interference",
        "merge",
        "negate",
        "profile",
        "resize",
        "scale",
    ),
    "apply": ("applied",),
    "data.survey": ("Survey", "survey"),
    "encode": ("token_count",),
    "errors": ("AlreadyTrained", "DiffloraError", "Interrupted"),
    "families": ("Model", "Usage", "identify", "load", "outline", "usage"),
    "fit": ("FitReport", "fits"),
    "formats": ("FileReport", "inspect", "read", "write"),
    "generate": ("generate", "replay"),
    "grid": ("Axis", "grid"),
    "latent_colours": ("LatentColours",),
    "library": ("Library", "LibraryEntry", "resolve"),
    "recipe": ("Recipe", "Request", "read_parameters", "read_recipe", "save_png"),
    "samplers": ("SAMPLERS",),
    "training.config": ("TrainConfig", "configure"),
    "training.loop": ("StepReport", "train"),
    "training.presets": ("PRESETS",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = version("difflora")
    elif name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """This module. The import system binds every submodule to its name here; `difflora.generate` and
    `difflora.grid` stay the functions that users call."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
