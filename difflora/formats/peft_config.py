"""The LoRA configuration that diffusers keeps as JSON in the metadata: where PEFT adapters have their alpha.

Each component's settings carry its name ("unet.lora_alpha"); files of a single model have them bare.
`alpha_pattern` and `rank_pattern` map regular expressions to the values of modules that differ from the rest;
PEFT matches them as `(.*\\.)?(KEY)$` against a module's name, and the first that matches counts.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from difflora.formats.format import Metadata, Scale
from difflora.kinds import LoRA

METADATA_KEY = "lora_adapter_metadata"
DEFAULT_ALPHA = 8  # PEFT's, where a configuration does not say
MAX_EXPRESSIONS = 32
TEXT_LEVEL = "text_model."

_LITERAL = re.compile(r"(\^?)((?:[\w-]|\\?\.|\\-)+)\$?")
# One or two repetitions, and none of a group: enough for the patterns people write, and never slow.
_SAFE = re.compile(r"[\w.\\^$|()\[\]*+?-]{1,200}")


def component_of(module: str) -> tuple[str, str]:
    """The component that a file's module name starts with, and the rest; "" where there is none."""
    component, _, inner = module.partition(".")
    return (component, inner) if component == "unet" or component.startswith("text_encoder") else ("", module)


def scales(metadata: Metadata) -> Scale:
    """Each module's scale by the configuration in `metadata`; 1 where there is none.

    alpha / rank, or alpha / sqrt(rank) for rsLoRA. Raises ValueError if the configuration cannot be
    understood.
    """
    if METADATA_KEY not in metadata:
        return lambda module, rank: 1.0
    try:
        config = json.loads(metadata[METADATA_KEY])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{METADATA_KEY} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{METADATA_KEY} is not a JSON object")
    components = {key.split(".", 1)[0] if "." in key else "" for key in config}
    settings = {component: _Settings(config, component) for component in components}

    def scale(module: str, rank: int) -> float:
        component, inner = component_of(module)
        return settings[component].scale(inner, rank) if component in settings else 1.0

    return scale


class _Settings:
    """The part of a configuration that concerns one component."""

    def __init__(self, config: Mapping[str, Any], component: str) -> None:
        prefix = f"{component}." if component else ""
        self._alpha = _number(f"{prefix}lora_alpha", config.get(f"{prefix}lora_alpha", DEFAULT_ALPHA))
        self._root = config.get(f"{prefix}use_rslora", False) is True
        patterns = config.get(f"{prefix}alpha_pattern") or {}
        if not isinstance(patterns, dict):
            raise ValueError(f"{prefix}alpha_pattern is not a JSON object")
        self._patterns = _Patterns({key: _number(key, value) for key, value in patterns.items()})

    def scale(self, module: str, rank: int) -> float:
        # The configuration names text modules as the library that wrote it did: with this level or without.
        bare = module.removeprefix(TEXT_LEVEL)
        alpha = self._patterns.first((bare, TEXT_LEVEL + bare), self._alpha)
        return alpha / (math.sqrt(rank) if self._root else rank)


class _Patterns:
    """PEFT's patterns, with plain names found by look-up: a file may hold one for each of 2,000 modules."""

    def __init__(self, patterns: Mapping[str, float]) -> None:
        self._whole: dict[str, tuple[int, float]] = {}
        self._tails: dict[str, tuple[int, float]] = {}
        self._expressions: list[tuple[int, re.Pattern[str], float]] = []
        for order, (pattern, value) in enumerate(patterns.items()):
            if match := _LITERAL.fullmatch(pattern):
                table = self._whole if match[1] else self._tails
                table.setdefault(match[2].replace("\\", ""), (order, value))
            else:
                self._expressions.append((order, _expression(pattern), value))
        if len(self._expressions) > MAX_EXPRESSIONS:
            raise ValueError(
                f"alpha_pattern has {len(self._expressions)} expressions, the limit is {MAX_EXPRESSIONS}"
            )

    def first(self, names: Iterable[str], default: float) -> float:
        """The value of the first pattern that matches any of the `names`."""
        hits: list[tuple[int, float]] = []
        for name in names:
            steps = name.split(".")
            hits += [self._whole[name]] if name in self._whole else []
            tails = (".".join(steps[start:]) for start in range(len(steps)))
            hits += [self._tails[tail] for tail in tails if tail in self._tails]
            hits += [(order, value) for order, regex, value in self._expressions if regex.match(name)]
        return min(hits)[1] if hits else default


def _expression(pattern: str) -> re.Pattern[str]:
    repeats = re.findall(r"[*+?{]", pattern)
    if not _SAFE.fullmatch(pattern) or len(repeats) > 2 or re.search(r"\)[*+?{]", pattern):
        raise ValueError(f"alpha_pattern {pattern[:80]!r} is too involved to be matched safely")
    try:
        return re.compile(rf"(?:.*\.)?(?:{pattern})$")
    except re.error as error:
        raise ValueError(f"alpha_pattern {pattern!r} is no regular expression: {error}") from error


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is {str(value)[:40]}, expected a number")
    return float(value)


def config_text(modules: Mapping[str, LoRA]) -> str:
    """The configuration under which diffusers and PEFT load these modules (by path) at the right scale."""
    components: dict[str, dict[str, LoRA]] = {}
    for path, lora in modules.items():
        component, inner = component_of(path)
        components.setdefault(component, {})[inner.removeprefix(TEXT_LEVEL)] = lora
    config = {
        f"{component}.{key}": value
        for component, inside in components.items()
        for key, value in _config(component, inside)
    }
    return json.dumps(config, indent=2, sort_keys=True)


def _config(component: str, modules: Mapping[str, LoRA]) -> Iterable[tuple[str, object]]:
    ranks = {inner: lora.rank for inner, lora in modules.items()}
    alphas = {inner: _tidy(lora.scale * lora.rank) for inner, lora in modules.items()}
    rank, alpha = _most_common(ranks.values()), _most_common(alphas.values())
    # Anchored, as PEFT's patterns match the ends of names. Not so for text modules: whether the live module
    # has the text_model level depends on the transformers release.
    anchor = "^" if component == "unet" else ""
    yield "peft_type", "LORA"
    yield "r", rank
    yield "lora_alpha", alpha
    yield "rank_pattern", {anchor + re.escape(inner): own for inner, own in ranks.items() if own != rank}
    yield "alpha_pattern", {anchor + re.escape(inner): own for inner, own in alphas.items() if own != alpha}
    yield "target_modules", sorted(modules)


def _most_common(values: Iterable[float]) -> float:
    counts = Counter(values)
    return max(sorted(counts), key=lambda value: counts[value])


def _tidy(alpha: float) -> float:
    """A whole number as an int: scale · rank misses it by one unit in the last place now and then."""
    return round(alpha) if alpha != 0 and math.isclose(alpha, round(alpha), rel_tol=1e-14) else alpha
