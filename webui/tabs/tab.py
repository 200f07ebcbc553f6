"""What a tab is, and what of the page all tabs see."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from webui.following import QUIET
from webui.shared import Shared
from webui.work.draw import Draw


@dataclass(frozen=True, slots=True)
class Handed:
    """What another tab hands to Generate: the name of an adapter that joins its mix, or a drawing that takes
    the place of its whole form. `number` is another one each time, so that the page sees that it came."""

    adapter: str = ""
    drawing: Draw | None = None
    number: int = field(default_factory=time.monotonic_ns)


@dataclass(frozen=True, slots=True)
class Page:
    """The page and the widgets above its tabs.

    `base` names the base model; `handed` is a State whose `Handed` the Generate tab takes; `tabs` chooses the
    tab on show, and `tab` is the one being built.
    """

    blocks: gr.Blocks
    base: gr.Dropdown
    handed: gr.State
    tabs: gr.Tabs
    tab: gr.Tab


@dataclass(frozen=True, slots=True)
class Tab:
    """A title, and the function that puts the tab's widgets on the page."""

    title: str
    build: Callable[[Shared, Page], None]


def at_first_sight(page: Page, fill: Callable[[gr.Request], list[Any]], outputs: Sequence[Any]) -> None:
    """Fills widgets when the tab is opened for the first time: a page that begins waits for nothing that is
    not on show."""
    seen = gr.State(False)

    def on_select(request: gr.Request, before: bool) -> list[Any]:
        return [True, *([gr.skip()] * len(outputs) if before else fill(request))]

    page.tab.select(on_select, seen, [seen, *outputs], **QUIET)


def reveal(selector: str) -> str:
    """JavaScript that scrolls to an element on a phone, where results lie below what asks for them."""
    show = f'document.querySelector("{selector}").scrollIntoView({{ behavior: "smooth" }})'
    return f"() => {{ if (window.innerWidth < 768) {show}; }}"
