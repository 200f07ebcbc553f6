"""Widgets made from the fields of a pydantic model: one each, labelled and explained by the field itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import gradio as gr
from gradio.components import Component
from pydantic import BaseModel
from pydantic.fields import FieldInfo

Form = dict[str, Component]
"""Field name -> its widget."""


def form(model: type[BaseModel], names: Iterable[str], *, blank: Callable[[FieldInfo], str]) -> Form:
    """One empty widget for each named field; `blank` says what an empty one stands for.

    Numbers have text boxes: gradio shows an empty number as 0. The model parses and checks them.

    Raises TypeError for a field of a type that no widget shows.
    """
    return {name: _widget(name, model.model_fields[name], blank(model.model_fields[name])) for name in names}


def given(model: type[BaseModel], names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """The values of the widgets that are not empty, by field; those that hold several are taken apart."""
    found = {name: value for name, value in zip(names, values, strict=True) if value not in (None, "")}
    for name, value in found.items():
        if ending := _between(model.model_fields[name]):
            found[name] = [part.strip() for part in value.split(ending) if part.strip()]
    return found


def filled(model: type[BaseModel], names: Sequence[str], options: Mapping[str, Any]) -> list[Any]:
    """What stands in the widgets where `options`, plain values by field, are given; undoes `given`."""

    def shown(name: str) -> str:
        value = options.get(name)
        if value is None:
            return ""
        if isinstance(value, bool):
            return "on" if value else "off"
        ending = _between(model.model_fields[name])
        return {"\n": "\n", ",": ", "}[ending].join(map(str, value)) if ending else str(value)

    return [shown(name) for name in names]


def _between(info: FieldInfo) -> str:
    """What stands between the members of a field with several: prompts have lines, numbers commas."""
    kind = _without_none(info.annotation)
    if get_origin(kind) is not tuple:
        return ""
    return "\n" if get_args(kind)[0] is str else ","


def _widget(name: str, info: FieldInfo, blank: str) -> Component:
    kind = _without_none(info.annotation)
    label, words = name.replace("_", " ").capitalize(), info.description
    if kind is bool or get_origin(kind) is Literal:
        choices = ("on", "off") if kind is bool else get_args(kind)
        return gr.Dropdown([(blank, ""), *choices], value="", label=label, info=words)
    if get_origin(kind) is tuple:
        lines = 2 if _between(info) == "\n" else 1
        words = f"{words} {'One a line.' if lines > 1 else 'With commas between.'}"
        return gr.Textbox(value="", placeholder=blank, label=label, info=words, lines=lines)
    if kind in (int, float, str, Path):
        return gr.Textbox(value="", placeholder=blank, label=label, info=words)
    raise TypeError(f"{name} is of type {info.annotation}, for which there is no widget")


def _without_none(annotation: Any) -> Any:
    """`int` of `int | None`; `float` of `Annotated[float, ...] | None`."""
    if get_origin(annotation) in (Union, UnionType):
        members = [member for member in get_args(annotation) if member is not NoneType]
        annotation = members[0] if len(members) == 1 else annotation
    return (
        getattr(annotation, "__origin__", annotation) if hasattr(annotation, "__metadata__") else annotation
    )
