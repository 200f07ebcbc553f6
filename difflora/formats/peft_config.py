"""The LoRA configuration that diffusers keeps as JSON in the metadata: where PEFT adapters have their alpha.

Each component's settings carry its name ("unet.lora_alpha"); files of a single model have them bare.
`alpha_pattern` and `rank_pattern` map regular expressions to the values of modules that differ from the rest;
PEFT matches them as `(.*\\.)?(KEY)$` against a module's name, and the first that matches counts.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from difflora.formats.format import Metadata, Scale
from difflora.formats.leaves import MAX_ALPHA
from difflora.formats.peft_modules import PeftModule
from difflora.formats.safe import clip

METADATA_KEY = "lora_adapter_metadata"
DEFAULT_ALPHA = DEFAULT_RANK = 8  # PEFT's, where a configuration does not say
MAX_EXPRESSIONS = 32
TEXT_LEVEL = "text_model."

_LITERAL = re.compile(r"(\^?)((?:[\w-]|\\?\.|\\-)+)\$?")
# One or two repetitions, and none of a group: enough for the patterns people write, and never slow.
_SAFE = re.compile(r"[\w.\\^$|()\[\]*+?-]{1,200}")


def component_of(module: str) -> tuple[str, str]:
    """The component that a file's module name starts with, and the rest; "" where there is none."""
    component, _, inner = module.partition(".")
    known = component in ("unet", "transformer") or component.startswith("text_encoder")
    return (component, inner) if known else ("", module)


def scales(metadata: Metadata) -> Scale:
    """Each module's scale by the configuration in `metadata`; 1 where there is none.

    alpha / rank, or alpha / sqrt(rank) for rsLoRA; a rank of 0 stands for that of the configuration.
    Raises ValueError if the configuration cannot be understood.
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


class _Settings:
    """The part of a configuration that concerns one component."""

    def __init__(self, config: Mapping[str, Any], component: str) -> None:
        prefix = f"{component}." if component else ""
        own = {key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)}
        _usable(prefix, own)
        name = _ALPHA[own.get("peft_type", "LORA")]
        self._alpha = _number(f"{prefix}{name}", own.get(name, DEFAULT_ALPHA))
        self._rank = _rank(f"{prefix}r", own.get("r", DEFAULT_RANK))
        self._root = own.get("use_rslora", False) is True
        self._alphas = _patterns(f"{prefix}alpha_pattern", own.get("alpha_pattern"), _number)
        self._ranks = _patterns(f"{prefix}rank_pattern", own.get("rank_pattern"), _rank)

    def scale(self, module: str, rank: int) -> float:
        # The configuration names text modules as the library that wrote it did: with this level or without.
        bare = module.removeprefix(TEXT_LEVEL)
        names = (bare, TEXT_LEVEL + bare)
        alpha = self._alphas.first(names, self._alpha)
        size = rank or self._ranks.first(names, self._rank)
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


def _patterns(name: str, patterns: Any, number: Callable[[str, object], float]) -> "_Patterns":
    if not isinstance(patterns or {}, dict):
        raise ValueError(f"{name} is not a JSON object")
    return _Patterns({key: number(f"{name}: {clip(key)}", value) for key, value in (patterns or {}).items()})


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
