"""The LoRA configuration that diffusers keeps as JSON in the metadata: where PEFT adapters have their alpha.

Each component's settings carry its name ("unet.lora_alpha"); files of a single model have them bare.
`alpha_pattern` and `rank_pattern` map regular expressions to the values of modules that differ from the rest;
see `difflora.formats.patterns`.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from difflora.formats.format import Metadata, Scale
from difflora.formats.leaves import MAX_ALPHA
from difflora.formats.patterns import first_matches
from difflora.formats.peft_modules import PeftModule
from difflora.formats.safe import clip

METADATA_KEY = "lora_adapter_metadata"
DEFAULT_ALPHA = DEFAULT_RANK = 8  # PEFT's, where a configuration does not say
TEXT_LEVEL = "text_model."

_NAME = re.compile(r"[\w.-]+")


def component_of(module: str) -> tuple[str, str]:
    """The component that a file's module name starts with, and the rest; "" where there is none."""
    component, _, inner = module.partition(".")
    known = component in ("unet", "transformer") or component.startswith("text_encoder")
    return (component, inner) if known else ("", module)


def scales(metadata: Metadata, modules: Collection[str]) -> Scale:
    """The scale of each of `modules`, as a file names them, by the configuration in `metadata`.

    alpha / rank, or alpha / sqrt(rank) for rsLoRA; a rank of 0 stands for that of the configuration. It is 1
    where there is no configuration, and in components that one of other components does not speak of.
    Raises ValueError if the configuration cannot be understood, or is about nothing that is there.
    """
    if METADATA_KEY not in metadata:
        return lambda module, rank: 1.0
    try:
        config = json.loads(metadata[METADATA_KEY])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{METADATA_KEY} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{METADATA_KEY} is not a JSON object")
    inside: dict[str, list[str]] = {}
    for module in modules:
        component, inner = component_of(module)
        inside.setdefault(component, []).append(inner)
    settings = {
        component: _Settings(component, own, _present(component, inside))
        for component, own in _sections(config).items()
    }

    def scale(module: str, rank: int) -> float:
        component, inner = component_of(module)
        return settings[component].scale(inner, rank) if component in settings else 1.0

    return scale


def _sections(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Component -> its settings; "" holds those without one. What no setting is known by is no section."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in config.items():
        component, dot, setting = key.partition(".")
        component, setting = (component, setting) if dot else ("", key)
        sections.setdefault(component, {})[setting] = value
    return {component: own for component, own in sections.items() if own.keys() & _KNOWN}


def _present(component: str, inside: Mapping[str, Collection[str]]) -> Collection[str]:
    """The modules of a component. Raises ValueError if no tensor is of it."""
    if component not in inside:
        there = ", ".join(clip(name) or "no component" for name in sorted(inside)) or "nothing"
        raise ValueError(
            f"it has settings for {clip(component) or 'modules of no component'}, but the tensors are of "
            f"{there}, which would act at another strength. Name the settings as the tensors are named"
        )
    return inside[component]


# What other initialisations, or other forms of LoRA, do to an adapter that this reader would not see.
_BASE_CHANGED = ("pissa", "olora", "corda", "lora_ga", "loftq")
_NOT_PLAIN = {
    "fan_in_fan_out": "the weights are stored transposed",
    "layer_replication": "layers of the base are repeated",
    "target_parameters": "parameters are changed that are no layer's weight",
    "trainable_token_indices": "single rows of an embedding are changed",
    "alora_invocation_tokens": "it acts after certain tokens only",
    "use_qalora": "the input is pooled in groups (QA-LoRA)",
    "use_bdlora": "its factors are block-diagonal (BD-LoRA)",
    "kasa_config": "its factors are scaled by singular values (KaSA)",
}
_ALPHA = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}


_KNOWN = frozenset(
    {"peft_type", "r", "use_rslora", "alpha_pattern", "rank_pattern", "target_modules", "init_lora_weights"}
    | set(_ALPHA.values())
    | _NOT_PLAIN.keys()
)


class _Settings:
    """The part of a configuration that concerns one component, whose `modules` are named without it."""

    def __init__(self, component: str, own: Mapping[str, Any], modules: Collection[str]) -> None:
        prefix = f"{component}." if component else ""
        _usable(prefix, own)
        name = _ALPHA[own.get("peft_type", "LORA")]
        self._alpha = _number(f"{prefix}{name}", own.get(name, DEFAULT_ALPHA))
        self._rank = _rank(f"{prefix}r", own.get("r", DEFAULT_RANK))
        self._root = own.get("use_rslora", False) is True
        self._alphas = _pattern_values(f"{prefix}alpha_pattern", own.get("alpha_pattern"), _number, modules)
        self._ranks = _pattern_values(f"{prefix}rank_pattern", own.get("rank_pattern"), _rank, modules)
        _require_targets(f"{prefix}target_modules", own.get("target_modules"), modules)

    def scale(self, module: str, rank: int) -> float:
        alpha = self._alphas.get(module, self._alpha)
        size = rank or self._ranks.get(module, self._rank)
        return alpha / (math.sqrt(size) if self._root else size)


def _usable(prefix: str, own: Mapping[str, Any]) -> None:
    """Raises ValueError if adapters under these settings are not what their tensors say."""
    kind = own.get("peft_type", "LORA")
    if not isinstance(kind, str) or kind not in _ALPHA:
        raise ValueError(f"{prefix}peft_type is {str(kind)[:40]}, expected {', '.join(_ALPHA)}")
    for key, reason in _NOT_PLAIN.items():
        if own.get(key):
            raise ValueError(f"{prefix}{key} is {str(own[key])[:40]}: {reason}, which cannot be read")
    start = own.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_BASE_CHANGED):
        raise ValueError(
            f"{prefix}init_lora_weights is {start[:40]}, which changed the base as well: save the adapter "
            "again with PEFT's path_initial_model_for_weight_conversion"
        )


def _pattern_values(
    title: str, patterns: Any, number: Callable[[str, object], float], modules: Collection[str]
) -> dict[str, float]:
    """Module -> its value in a table of patterns. Raises ValueError if the table matches none of them."""
    if not isinstance(patterns or {}, dict):
        raise ValueError(f"{title} is not a JSON object")
    if not patterns:
        return {}
    values = [number(f"{title}: {clip(key)}", value) for key, value in patterns.items()]
    orders = first_matches(title, list(patterns), {name for one in modules for name in _spellings(one)})
    if not orders:
        raise ValueError(_nothing_matched(title, list(patterns), modules))
    hits = {one: [orders[name] for name in _spellings(one) if name in orders] for one in modules}
    return {module: values[min(found)] for module, found in hits.items() if found}


def _spellings(module: str) -> tuple[str, ...]:
    """How the library that wrote a configuration may name a module: of text with its level, or without."""
    bare = module.removeprefix(TEXT_LEVEL)
    return bare, TEXT_LEVEL + bare


def _require_targets(title: str, targets: Any, modules: Collection[str]) -> None:
    """Raises ValueError if a list of targets has none of the modules.

    A regular expression is not looked at: nothing is read from it, and it may be of any form.
    """
    plain = [one for one in targets if isinstance(one, str) and _NAME.fullmatch(one)] if targets else []
    if isinstance(targets, list) and plain:
        names = {name for one in modules for name in _spellings(one)}
        if not first_matches(title, plain, names):
            raise ValueError(_nothing_matched(title, plain, modules))


def _nothing_matched(title: str, wanted: Sequence[str], modules: Collection[str]) -> str:
    more = f" and {len(wanted) - 1} more" if len(wanted) > 1 else ""
    return (
        f"{title} is for {clip(wanted[0])}{more}, which is none of the {len(modules)} modules in the file "
        f"({clip(min(modules))} ...): it belongs to other tensors"
    )


def _number(name: str, value: object) -> float:
    """A number from JSON, where whole numbers may be larger than any float: so compared before converted."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_ALPHA:
        raise ValueError(f"{name} is {str(value)[:40]}, expected a number up to {MAX_ALPHA:g}")
    return float(value)


def _rank(name: str, value: object) -> float:
    rank = _number(name, value)
    if rank < 1:
        raise ValueError(f"{name} is {str(value)[:40]}, expected a rank of 1 or more")
    return rank


def config_text(modules: Mapping[str, PeftModule]) -> str:
    """The configuration under which diffusers and PEFT load these modules (by path) at the right scale."""
    config = {
        f"{component}.{key}": value
        for component, settings in configs(modules).items()
        for key, value in settings.items()
    }
    return json.dumps(config, indent=2, sort_keys=True)


def configs(modules: Mapping[str, PeftModule]) -> dict[str, dict[str, object]]:
    """Component -> the LoraConfig of its modules (by path), as far as it is not PEFT's default."""
    components: dict[str, dict[str, PeftModule]] = {}
    for path, module in sorted(modules.items()):
        component, _, inner = path.partition(".")
        components.setdefault(component, {})[inner.removeprefix(TEXT_LEVEL)] = module
    return {component: dict(_config(component, inside)) for component, inside in components.items()}


def _config(component: str, modules: Mapping[str, PeftModule]) -> Iterable[tuple[str, object]]:
    factored = {inner: module for inner, module in modules.items() if module.factors}
    ranks = {inner: module.rank for inner, module in factored.items()}
    alphas = {inner: _tidy(module.alpha) for inner, module in factored.items()}
    rank, alpha = _most_common(ranks.values(), 1), _most_common(alphas.values(), 1)
    # Anchored, as PEFT's patterns match the ends of names. Not so for text modules: whether the live module
    # has the text_model level depends on the transformers release.
    anchor = "" if component.startswith("text_encoder") else "^"
    yield "peft_type", "LORA"
    yield "r", rank
    yield "lora_alpha", alpha
    yield "rank_pattern", {anchor + re.escape(inner): own for inner, own in ranks.items() if own != rank}
    yield "alpha_pattern", {anchor + re.escape(inner): own for inner, own in alphas.items() if own != alpha}
    yield "target_modules", sorted(factored)
    if any("lora_magnitude_vector" in module.factors for module in factored.values()):
        yield "use_dora", True
    if any("lora_B.bias" in module.factors for module in factored.values()):
        yield "lora_bias", True
    if whole := sorted(inner for inner, module in modules.items() if module.whole):
        yield "modules_to_save", whole


def _most_common(values: Iterable[float], default: float) -> float:
    counts = Counter(values)
    return max(sorted(counts), key=lambda value: counts[value], default=default)


def _tidy(alpha: float) -> float:
    """A whole number as an int: scale · rank misses it by one unit in the last place now and then."""
    return round(alpha) if alpha != 0 and math.isclose(alpha, round(alpha), rel_tol=1e-14) else alpha
