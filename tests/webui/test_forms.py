"""Every training option and every field of a request has a widget that says what it is."""

from pathlib import Path
from typing import Literal

import gradio as gr
import pytest
from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

from difflora import Request, TrainConfig
from webui.forms import filled, form, given
from webui.parts.request import NUMBERS
from webui.tabs.train import ADVANCED, MAIN


class Options(BaseModel):
    whole: int | None = Field(None, description="a whole number")
    real: float = Field(0.5, description="a number")
    text: str = Field("", description="words")
    folder: Path | None = Field(None, description="a path")
    choice: Literal["a", "b"] = Field("a", description="one of two")
    switch: bool = Field(False, description="on or off")
    words: tuple[str, ...] = Field((), description="several")
    pair: tuple[float, float] = Field((0.9, 0.99), description="two")
    table: dict[str, int] = Field(default_factory=dict, description="no widget for this")


def unset(info: FieldInfo) -> str:
    return "unset"


NAMES = ("whole", "real", "text", "folder", "choice", "switch")
KINDS = {
    "whole": gr.Textbox,
    "real": gr.Textbox,
    "text": gr.Textbox,
    "folder": gr.Textbox,
    "choice": gr.Dropdown,
    "switch": gr.Dropdown,
}


@pytest.mark.parametrize("name", NAMES)
def test_each_type_has_its_widget_with_the_words_of_the_field(name: str) -> None:
    widget = form(Options, [name], blank=unset)[name]
    assert type(widget) is KINDS[name]
    assert widget.label == name.capitalize()
    assert widget.info == Options.model_fields[name].description


def test_a_type_without_a_widget_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"table.*dict\[str, int\]"):
        form(Options, ["table"], blank=unset)


def test_what_is_filled_in_is_given_again() -> None:
    names = (*NAMES, "words", "pair")
    options = {
        "whole": 3,
        "real": 0.5,
        "choice": "b",
        "switch": True,
        "words": ["a, b", "c"],
        "pair": [0.5, 1],
    }
    shown = filled(Options, names, options)
    assert shown == ["3", "0.5", "", "", "b", "on", "a, b\nc", "0.5, 1"]
    assert Options(**given(Options, names, shown)) == Options(**options)
    widgets = form(Options, ("words", "pair"), blank=unset)
    assert [widget.info for widget in widgets.values()] == ["several One a line.", "two With commas between."]


def test_the_tabs_fields_exist_and_have_widgets() -> None:
    assert len(form(TrainConfig, (*MAIN, *ADVANCED), blank=unset)) == len(MAIN) + len(ADVANCED)
    assert len(form(Request, NUMBERS, blank=unset)) == len(NUMBERS)
