"""What people do with their adapters: look at one, set two side by side, make a smaller one, throw one away
and take it back."""

import json
from typing import Any

from playwright.sync_api import expect

from difflora import inspect, read, write
from tests.browser.steps import LONG, card, ended, fill, opened, tab
from tests.webui.serving import Site, random_adapter


def library(page: Any) -> None:
    """The tab, once it shows what there is now."""
    tab(page, "Library")
    page.locator("#library-refresh").click()
    card(page, "dots").wait_for(timeout=LONG)


def choose(page: Any, name: str) -> None:
    card(page, name).click()
    expect(page.locator("#details h3")).to_have_text(name, timeout=LONG)


def compare(page: Any, name: str) -> None:
    box = page.locator("#other input")
    box.click()
    box.fill("")
    box.press_sequentially(name, delay=30)
    page.get_by_role("option", name=name, exact=True).wait_for(timeout=LONG)
    box.press("Enter")
    page.locator("#compare-pair").click()


def test_an_adapter_tells_its_facts_its_strength_and_its_spectrum(page: Any, site: Site) -> None:
    library(page)
    choose(page, "dots")
    expect(page.locator("#details")).to_contain_text("lora 56")
    strength = page.locator("#strength")
    expect(strength).to_contain_text("effective rank", timeout=LONG)
    expect(strength).to_contain_text("resized to rank 1 loses")
    expect(page.locator("#blocks canvas, #blocks svg").first).to_be_visible(timeout=LONG)
    expect(page.locator("#spectrum canvas, #spectrum svg").first).to_be_visible(timeout=LONG)


def test_two_adapters_are_set_side_by_side(page: Any, site: Site) -> None:
    library(page)
    choose(page, "dots")
    page.get_by_text("Compare with another").click()
    compare(page, "glow")
    pair = page.locator("#pair")
    expect(pair).to_contain_text("dots and glow", timeout=LONG)
    expect(pair).to_contain_text("56 changed by both")
    expect(pair.locator(".modules tr")).to_have_count(9)
    expect(page.locator("#pair-heat img")).to_be_visible(timeout=LONG)
    compare(page, "xl")
    expect(pair).to_contain_text("they change different models", timeout=LONG)
    expect(page.locator("#pair-heat img")).to_be_hidden()


def test_an_adapter_goes_to_the_trash_and_comes_back(page: Any, site: Site) -> None:
    path = site.output / "adapters" / "passing.safetensors"
    write(random_adapter("passing", 5), path)
    path.with_suffix(".json").write_text('{"notes": "only here"}')
    before = path.read_bytes()
    library(page)
    choose(page, "passing")
    page.locator("#trash").click()
    expect(page.locator("#details")).to_contain_text("passing is in the trash", timeout=LONG)
    expect(card(page, "passing")).to_have_count(0, timeout=LONG)
    assert not path.exists() and not path.with_suffix(".json").exists()
    expect(page.locator("#trash")).to_be_disabled()
    page.locator("#untrash").click()
    expect(page.locator("#details h3")).to_have_text("passing", timeout=LONG)
    expect(card(page, "passing")).to_have_count(1, timeout=LONG)
    expect(page.locator("#untrash")).to_be_hidden()
    assert path.read_bytes() == before and "only here" in path.with_suffix(".json").read_text()


def test_what_would_be_overwritten_stays_in_the_trash(page: Any, site: Site) -> None:
    path = site.output / "adapters" / "taken.safetensors"
    write(random_adapter("taken", 6), path)
    library(page)
    choose(page, "taken")
    page.locator("#trash").click()
    expect(page.locator("#untrash")).to_be_visible(timeout=LONG)
    write(random_adapter("taken", 7), path)
    other = path.read_bytes()
    page.locator("#untrash").click()
    expect(page.locator("#details")).to_contain_text("taken.safetensors", timeout=LONG)
    assert path.read_bytes() == other
    expect(page.locator("#untrash")).to_be_visible()


def test_a_smaller_one_is_made_and_shown(page: Any, site: Site) -> None:
    library(page)
    choose(page, "glow")
    page.get_by_text("Make another file of it").click()
    fill(page, "#make-name", "glow-1")
    fill(page, "#make-rank", "1")
    page.locator("#resize").click()
    assert "lost" in ended(page, "#made")
    expect(card(page, "glow-1")).to_have_count(1, timeout=LONG)
    made = read(site.output / "adapters" / "glow-1.safetensors")
    assert {kind.rank for kinds in made.modules.values() for kind in kinds} == {1}


def test_one_is_written_in_another_format(page: Any, site: Site) -> None:
    library(page)
    choose(page, "glow")
    page.get_by_text("Make another file of it").click()
    fill(page, "#make-name", "glow-diffusers")
    page.locator("#convert").click()
    assert "exact" in ended(page, "#made")
    made = inspect(site.output / "adapters" / "glow-diffusers.safetensors")
    assert made.format != inspect(site.output / "adapters" / "glow.safetensors").format


def test_notes_are_kept_beside_the_file_and_found(page: Any, site: Site) -> None:
    write(random_adapter("noted", 8), site.output / "adapters" / "noted.safetensors")
    library(page)
    choose(page, "noted")
    page.get_by_text("Notes", exact=True).first.click()
    fill(page, "#note-trigger", "a noteworthy style")
    fill(page, "#note-weight", "0.6")
    page.locator("#note-save").click()
    expect(page.locator("#noted")).to_contain_text("saved", timeout=LONG)
    notes = json.loads((site.output / "adapters" / "noted.json").read_text())
    assert (notes["activation text"], notes["preferred weight"]) == ("a noteworthy style", 0.6)
    search = page.locator("#search input, #search textarea").first
    search.fill("noteworthy")
    search.press("Enter")
    expect(page.locator("#library-told")).to_contain_text("1 adapter ·", timeout=LONG)
    expect(card(page, "noted")).to_have_count(1)


def test_on_a_phone_every_card_is_there_and_a_click_leads_to_the_details(browser: Any, site: Site) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    opened(page, site)
    library(page)
    right = page.locator("#cards").bounding_box()
    for one in page.locator("#cards button").all():
        box = one.bounding_box()
        assert box["x"] + box["width"] <= right["x"] + right["width"]
    choose(page, "dots")
    expect(page.locator("#details h3")).to_be_in_viewport(timeout=LONG)
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 1
    context.close()
