"""The axes of a contact sheet as written on the command line: `weight:halftone=0,0.5,1`, `seed=1:4:4`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import get_args

from difflora.errors import ConfigError
from difflora.grid import Axis, AxisName, AxisValue
from difflora.prompts import parse_tags

HELP = (
    "NAME=VALUES with NAME one of weight:ADAPTER, weight, adapter, seed, steps, guidance, prompt; VALUES "
    "separated by commas (prompts by |), or FIRST:LAST:COUNT. weight:halftone=0:1:5, adapter=none,neon."
)


def parse_axis(text: str) -> Axis:
    """One axis. Raises ConfigError saying what is wrong and what an axis looks like."""
    kind, equals, written = text.partition("=")
    name, colon, adapter = kind.strip().partition(":")
    if not equals or name not in get_args(AxisName) or (colon and name != "weight"):
        raise ConfigError(f"{text!r} is no axis. {HELP}")
    try:
        values = _READERS[name](written)
    except ValueError as error:
        raise ConfigError(f"axis {text!r}: {error}. {HELP}") from error
    return Axis(_NAMES[name], values, adapter.strip() or None)


def _floats(written: str) -> tuple[AxisValue, ...]:
    if ":" not in written:
        return tuple(_number(part) for part in written.split(","))
    first, last, count = _range(written)
    step = (last - first) / (count - 1) if count > 1 else 0.0
    return tuple(round(first + step * index, 6) for index in range(count))


def _whole(written: str) -> tuple[AxisValue, ...]:
    values = _floats(written)
    broken = [value for value in values if not float(value or 0).is_integer()]
    if broken:
        raise ValueError(f"{broken[0]:g} is no whole number")
    return tuple(int(value or 0) for value in values)


def _prompts(written: str) -> tuple[AxisValue, ...]:
    prompts = tuple(part.strip() for part in written.split("|"))
    for prompt in prompts:
        if parse_tags(prompt).tags:
            raise ValueError(f"{prompt!r} has an adapter's tag: write that into --prompt, or use --adapter")
    return prompts


def _adapters(written: str) -> tuple[AxisValue, ...]:
    names = [part.strip() for part in written.split(",")]
    return tuple(None if name.lower() == "none" else name for name in names)


def _range(written: str) -> tuple[float, float, int]:
    parts = written.split(":")
    if len(parts) != 3 or not parts[2].strip().isdigit() or int(parts[2]) < 1:
        raise ValueError(f"{written!r} is no range")
    return _number(parts[0]), _number(parts[1]), int(parts[2])


def _number(written: str) -> float:
    try:
        return float(written)
    except ValueError as error:
        raise ValueError(f"{written.strip()!r} is no number") from error


_READERS: Mapping[str, Callable[[str], tuple[AxisValue, ...]]] = {
    "weight": _floats,
    "guidance": _floats,
    "seed": _whole,
    "steps": _whole,
    "adapter": _adapters,
    "prompt": _prompts,
}
_NAMES: Mapping[str, AxisName] = {name: name for name in get_args(AxisName)}
