"""Families of base models, one file each. A new family is one file here and one entry in FAMILIES.

`identify` and `load` arrive when first asked for, since they need libraries that take seconds to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from difflora.errors import ConfigError
from difflora.families.family import Component, Family, TextSpec
from difflora.families.flux import FLUX
from difflora.families.sd1 import SD1
from difflora.families.sd3 import SD3
from difflora.families.sdxl import SDXL

if TYPE_CHECKING:
    from difflora.families.detect import identify
    from difflora.families.hardware import Usage, usage
    from difflora.families.loading import load
    from difflora.families.model import BaseFacts, Model
    from difflora.families.outlines import outline

FAMILIES: tuple[Family, ...] = (SD1, SDXL, FLUX, SD3)

__all__ = [
    "FAMILIES",
    "BaseFacts",
    "Component",
    "Family",
    "Model",
    "TextSpec",
    "Usage",
    "family",
    "identify",
    "load",
    "outline",
    "usage",
]

_HOMES = {
    "identify": "detect",
    "load": "loading",
    "outline": "outlines",
    "BaseFacts": "model",
    "Model": "model",
    "Usage": "hardware",
    "usage": "hardware",
}


def family(name: str) -> Family:
    """The family of that name. Raises ConfigError listing the names if there is none."""
    for member in FAMILIES:
        if member.name == name:
            return member
    names = ", ".join(f"{member.name} ({member.title})" for member in FAMILIES)
    raise ConfigError(f"no family of base models is called {name!r}; there are: {names}")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
