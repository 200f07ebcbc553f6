"""What a tab is, and what of the page all tabs see."""

from collections.abc import Callable
from dataclasses import dataclass

import gradio as gr

from webui.shared import Shared


@dataclass(frozen=True, slots=True)
class Page:
    """The page and the widgets above its tabs.

    `base` names the base model; an adapter's name put into `pick` joins the mix of the Generate tab; `tabs`
    chooses the tab on show, and `tab` is the one being built.
    """

    blocks: gr.Blocks
    base: gr.Dropdown
    pick: gr.Textbox
    tabs: gr.Tabs
    tab: gr.Tab


@dataclass(frozen=True, slots=True)
class Tab:
    """A title, and the function that puts the tab's widgets on the page."""

    title: str
    build: Callable[[Shared, Page], None]


def reveal(selector: str) -> str:
    """JavaScript that scrolls to an element on a phone, where results lie below what asks for them."""
    show = f'document.querySelector("{selector}").scrollIntoView({{ behavior: "smooth" }})'
    return f"() => {{ if (window.innerWidth < 768) {show}; }}"
