"""The tab of the adapters that there are: find one, and look at it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from difflora import LibraryEntry
from webui.following import QUIET, notice
from webui.parts import details
from webui.shared import Shared
from webui.shelf import ANY, PAGE, SORTS, Query, cover, found
from webui.tabs.tab import Page, Tab, reveal

_IN_TURN: dict[str, Any] = {**QUIET, "concurrency_id": "shelf", "concurrency_limit": 1}
"""How events are bound that show cards: what is asked for last is shown last."""


def _build(shared: Shared, page: Page) -> None:
    with gr.Row(equal_height=True):
        words = gr.Textbox(
            "", label="Search", placeholder="name, trigger, kind or hash", elem_id="search", scale=4
        )
        family = gr.Dropdown([ANY], value=ANY, label="Family", scale=1, min_width=110)
        kind = gr.Dropdown([ANY], value=ANY, label="Kind", scale=1, min_width=110)
        order = gr.Dropdown(list(SORTS), value=SORTS[0], label="Order", scale=1, min_width=110)
        refresh = gr.Button("↻", min_width=40, scale=0, elem_id="library-refresh")
    with gr.Row():
        with gr.Column(scale=6, min_width=320, elem_id="shelf"):
            cards = gr.Gallery(
                show_label=False,
                columns=4,
                height="auto",
                object_fit="cover",
                interactive=False,
                allow_preview=False,
                elem_id="cards",
                buttons=[],
            )
            with gr.Row(equal_height=True):
                back = gr.Button("‹", min_width=40, scale=0)
                told = gr.HTML(elem_id="library-told")
                forth = gr.Button("›", min_width=40, scale=0)
        with gr.Column(scale=5, min_width=320):
            shown = details.build(shared, page)
    number = gr.State(0)
    filters = [words, family, kind, order]
    outputs = [cards, told, number, family, kind]

    def look(words: str, family: str, kind: str, order: str, page: int = 0) -> list[Any]:
        return _page(shared, Query(words, family, kind, order, page))

    def again(words: str, family: str, kind: str, order: str) -> list[Any]:
        shared.library.refresh()
        return look(words, family, kind, order)

    def before(words: str, family: str, kind: str, order: str, page: int) -> list[Any]:
        return look(words, family, kind, order, page - 1)

    def after(words: str, family: str, kind: str, order: str, page: int) -> list[Any]:
        return look(words, family, kind, order, page + 1)

    for widget in filters:
        event = widget.submit if widget is words else widget.input
        event(look, filters, outputs, trigger_mode="always_last", **_IN_TURN)
    refresh.click(again, filters, outputs, **_IN_TURN)
    for button, turned in ((back, before), (forth, after)):
        button.click(turned, [*filters, number], outputs, **_IN_TURN)
    cards.select(None, js=reveal("#details"))
    cards.select(_chosen, None, shown.selected, trigger_mode="always_last", **QUIET)
    shown.changed.change(look, [*filters, number], outputs, **_IN_TURN)
    page.blocks.load(again, filters, outputs, **_IN_TURN)
    page.tab.select(look, [*filters, number], outputs, **_IN_TURN)  # others may have made files since


def _chosen(event: gr.SelectData) -> str:
    """The name on the card, which the library looks up: the place of a card changes when files come or go."""
    return str(event.value["caption"]).split("\n")[0]


def _page(shared: Shared, query: Query) -> list[Any]:
    """Updates for one page of cards."""
    library = shared.library
    entries = found(library, query)
    pages = max(1, -(-len(entries) // PAGE))
    number = max(0, min(pages - 1, query.page))
    shown = entries[number * PAGE : (number + 1) * PAGE]
    broken = len(library.broken)
    wrong = f" · {broken} cannot be used" if broken else ""
    count = "1 adapter" if len(entries) == 1 else f"{len(entries)} adapters"
    text = f"{count} · page {number + 1} of {pages}{wrong}"
    everything = library.entries.values()
    families = sorted({entry.family for entry in everything})
    kinds = sorted({kind for entry in everything for kind in entry.kinds})
    return [
        gr.update(value=[(cover(shared, entry), _label(entry)) for entry in shown], selected_index=None),
        notice(text),
        number,
        gr.update(choices=[ANY, *families], value=query.family),
        gr.update(choices=[ANY, *kinds], value=query.kind),
    ]


def _label(entry: LibraryEntry) -> str:
    """Three lines below a picture."""
    rank = f" {entry.rank}" if entry.ranks else ""
    kind = f"{entry.family} · {', '.join(entry.kinds) or 'words'}{rank} · {entry.size / 2**20:.1f} MiB"
    digits = (entry.hashes.autov3 or entry.hashes.autov2 or entry.hashes.legacy)[:8]
    return f"{entry.name}\n{kind}\n{' · '.join(part for part in (entry.trigger, digits) if part)}"


LIBRARY = Tab("Library", _build)
