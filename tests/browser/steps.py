"""What a user does with a page, and what a test waits for."""

import re
from collections.abc import Mapping
from typing import Any

from playwright.sync_api import TimeoutError, expect

from tests.webui.serving import ROOT, Site

LONG = 60_000  # milliseconds, on a busy machine
OVER = "done in|Error|cancelled|stopped|kept as"


def opened(page: Any, site: Site) -> None:
    """Opens the page, and waits until it can be used: it tells the device, so its events work."""
    page.goto(site.url)
    page.locator("#prompt textarea").wait_for(timeout=LONG)
    page.locator("#device", has_text=re.compile("GiB|threads")).wait_for(timeout=LONG)


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def fill(page: Any, where: str, text: str) -> None:
    box = page.locator(f"{where} textarea, {where} input").first
    box.fill(text)
    box.press("Tab")


def pick(page: Any, name: str, prefix: str = "") -> None:
    """Adds an adapter to the mix, and waits until it is there or is refused.

    On a busy machine Gradio's list now and then loses what was typed; then it is typed again, as people do.
    """
    joined = (
        "([name, prefix]) => document.querySelector(`#${prefix}message .error`)"
        " || [...document.querySelectorAll(`[id^=${prefix}weight-]`)]"
        ".some((row) => row.checkVisibility() && row.innerText.includes(name))"
    )
    box = page.locator(f"#{prefix}picker input")
    for patience in (8_000, 15_000, LONG):
        box.click()
        box.fill("")
        box.press_sequentially(name, delay=30)
        page.get_by_role("option", name=name, exact=True).wait_for(timeout=LONG)
        box.press("Enter")
        try:
            page.wait_for_function(joined, arg=[name, prefix], timeout=patience)
            return
        except TimeoutError:
            if patience == LONG:
                raise


def steps(page: Any, count: int) -> None:
    box = page.get_by_label("number input for Steps").first
    box.fill(str(count))
    box.press("Tab")


def begin_training(page: Any, name: str, options: Mapping[str, str]) -> None:
    """Looks at the neon images in the Train tab, and starts to learn from them."""
    tab(page, "Train")
    fill(page, "#data", str(ROOT / "sample_data" / "styles" / "neon"))
    page.locator("#check").click()
    expect(page.locator("#survey")).to_contain_text("24 images", timeout=LONG)
    fill(page, "#train-name", name)
    for label, value in options.items():
        box = page.locator("#train-options label", has_text=label).first.locator("input, textarea")
        box.fill(value)
        box.press("Tab")
    page.locator("#train").click()


def ended(page: Any, where: str = "#status", *, before: str = "") -> str:
    """The status of a job once it is over; `before` is what it was when the job was begun."""
    page.wait_for_function(
        "([where, before, over]) => { const node = document.querySelector(`${where} .status`);"
        " return node && node.outerHTML !== before && RegExp(over).test(node.innerText); }",
        arg=[where, before, OVER],
        timeout=LONG,
    )
    return str(page.locator(f"{where} .status").inner_text())


def shown(page: Any, where: str) -> str:
    """What a status shows, to be told from what comes after it."""
    return str(page.evaluate("where => document.querySelector(`${where} .status`)?.outerHTML ?? ''", where))


def draw(page: Any, prompt: str, count: int = 4) -> str:
    fill(page, "#prompt", prompt)
    steps(page, count)
    before = shown(page, "#status")
    page.locator("#prompt textarea").press("Control+Enter")
    return ended(page, before=before)


def card(page: Any, name: str) -> Any:
    """The card of an adapter: its name is the first line of it."""
    return page.locator("#cards button", has_text=re.compile(rf"^\s*{re.escape(name)}\s"))
