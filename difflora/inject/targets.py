"""Which layers are trained."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from difflora.errors import ConfigError
from difflora.inject.options import NetworkOptions

if TYPE_CHECKING:
    from difflora.families.model import Model

_ATTENTION = r"\.attn[12]\.to_(q|k|v|out\.0)$"
_TEXT_ATTENTION = r"\.self_attn\.(q|k|v|out)_proj$"

# A pattern is searched in the dotted path. `None` in place of a pattern takes every layer of the given types.
TARGETS: dict[str, tuple[str, str, tuple[type[nn.Module], ...]]] = {
    "attn": (_ATTENTION, _TEXT_ATTENTION, (nn.Linear,)),
    "attn+ff": (_ATTENTION + r"|\.ff\.net\.(0\.proj|2)$", _TEXT_ATTENTION, (nn.Linear,)),
    # SD 1.x stores the projections into and out of a transformer block as 1×1 convolutions.
    "all-linear": (r"", _TEXT_ATTENTION + r"|\.mlp\.fc[12]$", (nn.Linear,)),
    "all": (r"", _TEXT_ATTENTION + r"|\.mlp\.fc[12]$", (nn.Linear, nn.Conv2d)),
}
_PROJECTION = re.compile(r"\.proj_(in|out)$")


def targets(model: Model, options: NetworkOptions) -> tuple[str, ...]:
    """The paths that `options` select in `model`, in the model's order.

    Raises ConfigError if a pattern is no regular expression or selects nothing.
    """
    wanted = [part.name for part in model.family.components if _is_trained(part.is_text, options)]
    layers = {path: model.module(path) for path in model.shapes() if path.split(".", 1)[0] in wanted}
    layers = {path: layer for path, layer in layers.items() if isinstance(layer, nn.Linear | nn.Conv2d)}
    if options.targets in TARGETS:
        chosen = [path for path, layer in layers.items() if _in_preset(path, layer, options.targets)]
    else:
        chosen = _matching(layers, options.targets)
    if not chosen:
        raise ConfigError(
            f"targets={options.targets!r} selects no layer of {model.facts.name}. "
            f"Use one of {', '.join(TARGETS)}, or a pattern such as 'attn2\\.to_[kv]$', and check "
            "train_unet and train_text_encoder."
        )
    return tuple(chosen)


def _is_trained(is_text: bool, options: NetworkOptions) -> bool:
    return options.train_text_encoder if is_text else options.train_unet


def _in_preset(path: str, layer: nn.Module, preset: str) -> bool:
    unet, text, types = TARGETS[preset]
    if path.startswith("text_encoder"):
        return re.search(text, path) is not None
    is_projection = preset == "all-linear" and _PROJECTION.search(path) is not None
    return is_projection or (isinstance(layer, types) and re.search(unet, path) is not None)


def _matching(paths: Iterable[str], patterns: str) -> list[str]:
    known = list(paths)
    chosen: set[str] = set()
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        try:
            found = {path for path in known if re.search(pattern, path)}
        except re.error as error:
            raise ConfigError(f"targets: {pattern!r} is no regular expression: {error}") from error
        if not found:
            raise ConfigError(
                f"targets: {pattern!r} matches no layer. See `difflora show MODEL` for the layer paths."
            )
        chosen |= found
    return [path for path in known if path in chosen]
