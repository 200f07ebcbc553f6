"""Command-line flags made from pydantic models: one flag a field, and only what was given comes back."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict, TypeVar, get_args

import tyro
from pydantic import BaseModel
from pydantic.fields import FieldInfo

Parsed = TypeVar("Parsed")

# "None" takes a preset's value away; a name or a path that is not wanted is just not given.
_METAVARS: Mapping[Any, str] = {str: "STR", Path: "PATH", int: "INT|None", float: "FLOAT|None"}


@dataclasses.dataclass(frozen=True)
class Shown:
    """What `--help` says beside the fields' own words.

    `values` are starting values that differ from the fields' defaults, `source` says where they come from;
    `aliases` maps a field to a second flag, `renamed` to the flag it has instead of its own name.
    """

    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    source: str = "default"
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)


def option_group(model: type[BaseModel], *, shown: Shown = Shown(), skip: Collection[str] = ()) -> type:
    """A type whose flags are the fields that `model` itself declares, less `skip`, all of them optional.

    tyro turns it into a dict of the flags that were given: one equal to its default counts as given, too.
    """
    own = [name for name in model.__annotations__ if name in model.model_fields and name not in skip]
    fields = {name: _flag(name, model.model_fields[name], shown) for name in own}
    make: Any = TypedDict
    group = make(model.__name__, fields, total=False)
    group.__doc__ = model.__doc__
    return group


def _flag(name: str, info: FieldInfo, shown: Shown) -> Any:
    alias = shown.aliases.get(name)
    argument = tyro.conf.arg(
        help=info.description,
        name=shown.renamed.get(name),
        metavar=_metavar(info.annotation),
        help_behavior_hint=_hint(name, info, shown),
        aliases=[alias] if alias else None,
    )
    return Annotated[info.annotation, argument]


def _metavar(annotation: Any) -> str | None:
    """What stands for the value of an optional flag; None leaves it to tyro."""
    members = [getattr(member, "__origin__", member) for member in get_args(annotation)]
    inner = [member for member in members if member is not type(None)]
    return _METAVARS.get(inner[0]) if len(inner) == 1 < len(members) else None


def _hint(name: str, info: FieldInfo, shown: Shown) -> str:
    if name in shown.values:
        return f"({shown.source}: {_words(shown.values[name])})"
    if info.is_required():
        return "(needed)"
    default = info.get_default()
    return "" if default in (None, "", ()) else f"(default: {_words(default)})"


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def grouped(**groups: type) -> type:
    """One type that holds each group of flags under its own heading of the help."""
    return dataclasses.make_dataclass("Flags", list(groups.items()), frozen=True)


def parse(flags: type[Parsed], words: Sequence[str], *, verb: str, about: str) -> Parsed:
    """The flags found in `words`. Prints help or what is wrong with them, and raises SystemExit(0) or (2)."""
    return tyro.cli(
        tyro.conf.OmitArgPrefixes[flags],  # pyright: ignore[reportInvalidTypeArguments]
        prog=f"difflora {verb}",
        description=about,
        args=words,
    )


def require(model: type[BaseModel], given: Mapping[str, Any], *, verb: str, besides: str = "") -> None:
    """Raises the usage error that names every needed field of `model` which was not given."""
    missing = [name for name, info in model.model_fields.items() if info.is_required() and name not in given]
    if missing:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise usage_error(verb, f"needed{besides}: {flags}")


def usage_error(verb: str, message: str) -> SystemExit:
    """Wrong usage that only shows when flags are seen together; to be raised."""
    print(f"error: {message}\nFor all options: difflora {verb} --help", file=sys.stderr)
    return SystemExit(2)
