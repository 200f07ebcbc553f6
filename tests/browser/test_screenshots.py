"""A newcomer's first minutes, on the page as `make ui` opens it: what README shows is what is seen here.

DIFFLORA_SCREENSHOTS=1 pytest -m slow tests/browser/test_screenshots.py     writes docs/screenshots anew.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.browser.steps import LONG, begin_training, draw, ended, fill, opened, pick, tab
from tests.webui.serving import ROOT, Site, serve

pytestmark = pytest.mark.slow
Shot = Callable[..., None]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A page with nothing but what comes along, and every core of this computer."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            patch.delenv(name, raising=False)
        with serve(tmp_path_factory.mktemp("new")) as site:
            yield site


@pytest.fixture
def shot(tmp_path: Path) -> Shot:
    """What takes a screenshot, for the documentation where it is asked for."""
    folder = ROOT / "docs" / "screenshots" if os.environ.get("DIFFLORA_SCREENSHOTS") else tmp_path

    def take(page: Any, name: str, *, whole: bool = True) -> None:
        page.wait_for_timeout(1_000)  # plots and pictures fade in
        path = folder / f"{name}.png"
        page.screenshot(path=path, full_page=whole)
        with Image.open(path) as image:
            image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)

    return take


def test_a_picture_is_drawn_with_an_adapter_of_the_demonstration(page: Any, shot: Shot) -> None:
    pick(page, "halftone")
    fill(page, "#prompt", "a large red heart on a blue background")
    page.locator("#words-0").click()
    prompt = "a large red heart on a blue background, halftone style"
    expect(page.locator("#prompt textarea")).to_have_value(prompt)
    fill(page, "#seed", "11")
    page.locator("#compare input").check()
    assert "done in" in draw(page, prompt, 25)
    expect(page.locator("#slider")).to_be_visible()
    shot(page, "generate")


def test_two_styles_are_blended(page: Any, shot: Shot) -> None:
    tab(page, "Blend")
    for name in ("halftone", "neon"):
        pick(page, name, "blend-")
    expect(page.locator("#down input")).to_have_value("neon", timeout=LONG)
    fill(page, "#blend-text", "a large yellow star on a purple background, halftone style, neon style")
    fill(page, "#columns", "0 - 1 [4]")
    fill(page, "#rows", "0 - 1 [4]")
    page.locator("#blend").click()
    assert "done in" in ended(page, "#blend-status")
    expect(page.locator("#cells .thumbnail-item")).to_have_count(16)
    shot(page, "blend")


def test_a_style_is_trained(page: Any, shot: Shot) -> None:
    options = {"Trigger": "neon style", "Steps": "120", "Preview every": "60"}
    begin_training(page, "lights", options)
    expect(page.locator("#previews")).to_contain_text("step 120", timeout=3 * LONG)
    assert "done in" in ended(page, "#train-status")
    shot(page, "train")


def test_the_library_tells_what_is_in_it(page: Any, shot: Shot) -> None:
    tab(page, "Library")
    page.locator("#library-refresh").click()
    page.locator("#cards button", has_text="neon").first.click()
    expect(page.locator("#strength")).to_contain_text("effective rank", timeout=LONG)
    shot(page, "library")


def test_a_phone_in_the_dark_shows_the_same(browser: Any, site: Site, shot: Shot) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page = context.new_page()
    opened(page, site)
    assert "done in" in draw(
        page, "a large green star on a yellow background <lora:neon:0.8>, neon style", 25
    )
    expect(page.locator("#gallery img").first).to_be_visible(timeout=LONG)
    page.evaluate("document.querySelector('#status').scrollIntoView()")
    shot(page, "phone", whole=False)
    context.close()
