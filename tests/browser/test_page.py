"""What people do in the page: train, draw, blend, keep, come back, and run into walls that say why."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from difflora import read_recipe
from tests.browser.conftest import CHROMIUM, QUIET
from tests.webui.serving import ROOT, Site

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = [
    pytest.mark.slow,  # `make test-all`: a browser beside other tests on two cores is late at times
    pytest.mark.skipif(
        CHROMIUM is None, reason="needs Chromium: apt-get install chromium (the CI set-up does, as root)"
    ),
]
LONG = 40_000  # milliseconds, on a busy machine
SHOTS = ROOT / "docs" / "screenshots"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, site: Site) -> Iterator[Any]:
    """The page, freshly opened; a request to anywhere else, or an error in a script, fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    foreign: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: foreign.append(request.url) if is_foreign(request.url) else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    opened(page, site)
    yield page
    assert page.evaluate("window.hacked") is None
    context.close()
    assert not foreign and not errors


def is_foreign(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1", "data:", "blob:"))


def opened(page: Any, site: Site) -> None:
    page.goto(site.url)
    page.locator("#prompt textarea").wait_for(timeout=LONG)


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def fill(page: Any, where: str, text: str) -> None:
    box = page.locator(f"{where} textarea, {where} input").first
    box.fill(text)
    box.press("Tab")


def pick(page: Any, name: str, prefix: str = "") -> None:
    """Adds an adapter to the mix."""
    box = page.locator(f"#{prefix}picker input")
    box.click()
    box.press_sequentially(name, delay=30)
    playwright.expect(page.get_by_role("option")).to_have_count(1, timeout=LONG)
    box.press("Enter")


def steps(page: Any, count: int) -> None:
    box = page.get_by_label("number input for Steps").first
    box.fill(str(count))
    box.press("Tab")


OVER = "done in|Error|cancelled|stopped|kept as"


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


def newest(site: Site, name: str) -> Path:
    return max(site.output.glob(f"jobs/*/{name}"), key=lambda path: path.stat().st_mtime)


def test_a_prompt_becomes_a_picture_with_its_recipe(page: Any, site: Site) -> None:
    assert "done in" in draw(page, "a red circle on a blue background")
    playwright.expect(page.locator("#gallery img").first).to_be_visible()
    playwright.expect(page.locator("#infotext textarea")).to_have_value(
        re.compile("a red circle.*Seed", re.S)
    )
    assert read_recipe(newest(site, "00-*.png")).request.steps == 4


def test_tokens_are_counted_while_typing(page: Any) -> None:
    page.locator("#prompt textarea").fill("a red circle")
    playwright.expect(page.locator("#counter")).to_have_text("3 tokens", timeout=LONG)


def test_an_adapter_joins_tells_what_it_is_and_changes_the_picture(page: Any, site: Site) -> None:
    pick(page, "dots")
    row = page.locator(".mix-row").first
    playwright.expect(row).to_contain_text("rank 2", timeout=LONG)
    playwright.expect(row).to_contain_text("‖ΔW‖")
    page.locator("#words-0").click()
    playwright.expect(page.locator("#prompt textarea")).to_have_value("dots style")
    weight = page.get_by_label("number input for dots").first
    weight.fill("0.6")
    weight.press("Tab")
    page.locator("#compare input").check()
    assert "done in" in draw(page, "a red circle on a blue background, dots style")
    recipe = read_recipe(newest(site, "00-*[0-9].png"))
    assert [(one.name, one.unet) for one in recipe.adapters] == [("dots", 0.6)]
    assert read_recipe(newest(site, "00-*-off.png")).adapters == ()
    playwright.expect(page.locator("#slider")).to_be_visible()
    page.locator("#remove-0").click()
    playwright.expect(row).to_be_hidden()


def test_a_tag_in_the_prompt_joins_the_mix(page: Any, site: Site) -> None:
    assert "done in" in draw(page, "a red circle <lora:glow:0.5>")
    assert [one.name for one in read_recipe(newest(site, "00-*.png")).adapters] == ["glow"]
    status = draw(page, "a red circle <lora:nobody:1>")
    assert "nobody" in status and "Error" in status


def test_an_adapter_of_another_family_is_refused_with_the_reason(page: Any) -> None:
    pick(page, "xl")
    playwright.expect(page.locator("#message")).to_contain_text("does not fit", timeout=LONG)
    playwright.expect(page.locator(".mix-row").first).to_be_hidden()


def test_text_out_of_files_is_shown_as_text(page: Any) -> None:
    pick(page, "evil")
    playwright.expect(page.locator("#words-0")).to_contain_text("<script>", timeout=LONG)
    tab(page, "Library")
    page.locator("#cards button", has_text="evil").first.click()
    playwright.expect(page.locator("#details")).to_contain_text("<script>", timeout=LONG)


def test_ctrl_up_and_down_dial_the_weight_under_the_cursor(page: Any) -> None:
    box = page.locator("#prompt textarea")
    box.fill("a <lora:dots:0.5> ring")
    box.evaluate("box => box.setSelectionRange(6, 6)")
    box.press("Control+ArrowUp")
    assert box.input_value() == "a <lora:dots:0.55> ring"
    box.fill("a ring")
    box.evaluate("box => box.setSelectionRange(4, 4)")
    box.press("Control+ArrowDown")
    assert box.input_value() == "a (ring:0.95)"


def test_a_reload_in_the_middle_of_a_job_loses_nothing(page: Any, site: Site) -> None:
    fill(page, "#prompt", "a green star on a white background")
    steps(page, 60)
    page.locator("#generate").click()
    playwright.expect(page.locator("#status")).to_contain_text("of 60", timeout=LONG)
    opened(page, site)
    playwright.expect(page.locator("#status")).to_contain_text("of 60", timeout=LONG)
    playwright.expect(page.locator("#live img")).to_be_visible(timeout=LONG)
    assert "done in" in ended(page)
    playwright.expect(page.locator("#infotext textarea")).to_have_value(re.compile("a green star"))


def test_escape_cancels_within_a_step_and_the_next_job_is_done(page: Any) -> None:
    fill(page, "#prompt", "a teal heart")
    steps(page, 100)
    page.locator("#generate").click()
    playwright.expect(page.locator("#status")).to_contain_text("of 100", timeout=LONG)
    started = time.monotonic()
    page.keyboard.press("Escape")
    assert "cancelled" in ended(page) and time.monotonic() - started < 10
    assert "done in" in draw(page, "a teal heart")


def test_settings_come_back_from_a_picture(page: Any, site: Site) -> None:
    pick(page, "glow")
    playwright.expect(page.locator(".mix-row").first).to_be_visible(timeout=LONG)
    draw(page, "a pink diamond on a black background", 5)
    picture = newest(site, "00-*.png")
    opened(page, site)
    with page.expect_file_chooser() as chooser:
        page.locator("#restore").click()
    chooser.value.set_files(str(picture))
    playwright.expect(page.locator("#prompt textarea")).to_have_value(
        "a pink diamond on a black background", timeout=LONG
    )
    playwright.expect(page.locator(".mix-row").first).to_contain_text("glow")
    seed = str(read_recipe(picture).seed)
    playwright.expect(page.locator("#seed input, #seed textarea").first).to_have_value(seed)


def test_two_adapters_are_blended_a_cell_gives_its_weights_and_the_mix_is_kept(page: Any, site: Site) -> None:
    tab(page, "Blend")
    for name in ("dots", "glow"):
        pick(page, name, "blend-")
        page.wait_for_timeout(500)
    playwright.expect(page.locator("#down input")).to_have_value("glow", timeout=LONG)
    fill(page, "#blend-text", "a red ring on a yellow background")
    fill(page, "#columns", "0, 0.5, 1")
    fill(page, "#rows", "0, 1")
    box = page.locator("#blend-steps input[type=number]")
    box.fill("3")
    box.press("Tab")
    page.locator("#blend").click()
    assert "done in" in ended(page, "#blend-status")
    cells = page.locator("#cells .thumbnail-item")
    playwright.expect(cells).to_have_count(6)
    shot(page, "blend")
    cells.nth(4).click()
    weight = page.locator("#blend-weight-0 input[type=number]")
    playwright.expect(weight).to_have_value("0.5", timeout=LONG)
    playwright.expect(page.locator("#blend-weight-1 input[type=number]")).to_have_value("1")
    page.get_by_text("How they meet").click()
    page.locator("#meet").click()
    playwright.expect(page.locator("#meeting")).to_contain_text("of it is in the sum", timeout=LONG)
    page.get_by_text("Keep this mix").click()
    fill(page, "#keep-name", "both")
    page.locator("#keep").click()
    assert "exact" in ended(page, "#kept")
    assert (site.output / "adapters" / "both.safetensors").exists()


def test_a_style_is_trained_found_in_the_library_and_drawn_with(page: Any, site: Site) -> None:
    tab(page, "Train")
    fill(page, "#data", str(ROOT / "sample_data" / "styles" / "neon"))
    page.locator("#check").click()
    playwright.expect(page.locator("#survey")).to_contain_text("24 images", timeout=LONG)
    playwright.expect(page.locator("#images img").first).to_be_visible()
    fill(page, "#train-name", "lights")
    for label, value in (("Steps", "8"), ("Rank", "4"), ("Preview every", "4")):
        box = page.locator("#train-options label", has_text=label).first.locator("input, textarea")
        box.fill(value)
        box.press("Tab")
    page.locator("#train").click()
    playwright.expect(page.locator("#train-status")).to_contain_text("of 8", timeout=LONG)
    assert "done in" in ended(page, "#train-status")
    playwright.expect(page.locator("#loss")).to_be_visible()
    shot(page, "train")
    page.locator("#use").click()
    playwright.expect(page.locator(".mix-row").first).to_contain_text("lights", timeout=LONG)
    assert "done in" in draw(page, "a red circle on a blue background, neon style", 6)
    shot(page, "generate")
    tab(page, "Library")
    page.locator("#library-refresh").click()
    page.locator("#cards button", has_text="lights").first.click()
    playwright.expect(page.locator("#details")).to_contain_text("lora", timeout=LONG)
    shot(page, "library")


def test_a_broken_image_is_named(page: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG nothing")
    tab(page, "Train")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload images and captions").click()
    chooser.value.set_files(str(broken))
    playwright.expect(page.locator("#survey")).to_contain_text("broken.png", timeout=LONG)


def test_a_folder_that_cannot_be_learned_from_says_why(page: Any, tmp_path: Path) -> None:
    tab(page, "Train")
    fill(page, "#data", str(tmp_path / "nothing"))
    page.locator("#check").click()
    playwright.expect(page.locator("#survey")).to_contain_text("nothing", timeout=LONG)
    fill(page, "#train-name", "never")
    before = shown(page, "#train-status")
    page.locator("#train").click()
    assert "Error" in ended(page, "#train-status", before=before)


def test_a_base_that_is_none_is_told(page: Any) -> None:
    box = page.locator("#base textarea, #base input").first
    box.fill("/there/is/none")
    box.press("Enter")
    playwright.expect(page.locator("#base-facts")).to_contain_text("/there/is/none", timeout=LONG)


def test_it_can_be_used_on_a_phone(browser: Any, site: Site) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page = context.new_page()
    opened(page, site)
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 1
    playwright.expect(page.locator("#generate")).to_be_visible()
    shot(page, "phone", whole=False)
    context.close()


def shot(page: Any, name: str, *, whole: bool = True) -> None:
    """A screenshot for the documentation, where they are asked for."""
    if os.environ.get("DIFFLORA_SCREENSHOTS"):
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(800)
        page.screenshot(path=SHOTS / f"{name}.png", full_page=whole)
