"""The small things of the forms: each button and box does what it says."""

import re
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import expect

from difflora import inspect, read_recipe
from tests.browser.steps import LONG, begin_training, draw, ended, fill, opened, pick, shown, steps, tab
from tests.webui.serving import Site

PROMPT = "a red circle on a blue background"


def box(page: Any, where: str) -> Any:
    return page.locator(f"{where} textarea, {where} input").first


def newest(site: Site, name: str) -> Path:
    return max(site.output.glob(f"jobs/*/{name}"), key=lambda path: path.stat().st_mtime)


def test_seeds_are_taken_thrown_and_given_back(page: Any, site: Site) -> None:
    fill(page, "#seed", "41")
    draw(page, PROMPT, 2)
    page.locator("#dice").click()
    expect(box(page, "#seed")).to_have_value("", timeout=LONG)
    page.locator("#recycle").click()
    expect(box(page, "#seed")).to_have_value("41", timeout=LONG)
    fill(page, "#prompt", "another one")
    fill(page, "#seed", "")
    page.locator("#send-back").click()
    expect(box(page, "#prompt")).to_have_value(PROMPT, timeout=LONG)
    expect(box(page, "#seed")).to_have_value("41")
    expect(page.locator("#status")).to_contain_text("settings restored")


def test_width_and_height_change_places(page: Any, site: Site) -> None:
    width, height = (page.locator("label", has_text=name).locator("textarea") for name in ("Width", "Height"))
    width.fill("64")
    height.fill("128")
    height.press("Tab")
    page.locator("#swap").click()
    expect(width).to_have_value("128", timeout=LONG)
    draw(page, PROMPT, 2)
    with Image.open(newest(site, "00-*.png")) as image:
        assert image.size == (128, 64)


def test_an_adapter_is_put_off_and_has_a_weight_of_its_own_on_the_text_encoders(
    page: Any, site: Site
) -> None:
    for name in ("dots", "glow"):
        pick(page, name)
    page.locator("#on-0 input").uncheck()
    page.locator("#own-1 input").check()
    text = page.locator("#text-1 input[type=number]")
    expect(text).to_have_value("1", timeout=LONG)
    text.fill("0.25")
    text.press("Tab")
    page.wait_for_timeout(500)
    draw(page, PROMPT, 2)
    recipe = read_recipe(newest(site, "00-*.png"))
    assert [(one.name, one.unet, one.text) for one in recipe.adapters] == [("glow", 1.0, 0.25)]


def test_earlier_pictures_are_there_with_their_settings(page: Any) -> None:
    for prompt in ("a green star", "a teal heart"):
        draw(page, prompt, 2)
    page.get_by_text("Earlier pictures").click()
    earlier = page.locator("#history .thumbnail-item")
    expect(earlier).to_have_count(2, timeout=LONG)
    earlier.nth(1).click()
    expect(page.locator("#infotext textarea")).to_have_value(re.compile("a green star"), timeout=LONG)


def test_what_is_asked_for_while_one_is_drawn_stands_in_line(page: Any) -> None:
    fill(page, "#prompt", "a pink ring")
    steps(page, 60)
    page.locator("#generate").click()
    expect(page.locator("#status")).to_contain_text("of 60", timeout=LONG)
    fill(page, "#prompt", "a teal heart")
    steps(page, 2)
    page.locator("#generate").click()
    expect(page.locator("#status")).to_contain_text("1 more in line", timeout=LONG)
    page.get_by_text("Your jobs").click()
    listed = page.locator("#queue-list")
    expect(listed).to_contain_text("waiting", timeout=LONG)
    expect(listed).to_contain_text("running")
    expect(page.locator("#infotext textarea")).to_have_value(re.compile("a teal heart"), timeout=LONG)
    expect(listed.locator("tr", has_text="done")).to_have_count(2, timeout=LONG)


def test_all_that_waits_or_runs_is_cancelled_at_once(page: Any) -> None:
    fill(page, "#prompt", "a pink ring")
    steps(page, 100)
    for _ in range(2):
        page.locator("#generate").click()
        page.wait_for_timeout(300)
    page.get_by_text("Your jobs").click()
    page.locator("#cancel-all").click()
    cancelled = page.locator("#queue-list tr", has_text="cancelled")
    expect(cancelled).to_have_count(2, timeout=LONG)


def test_images_are_brought_looked_at_and_their_captions_changed(
    page: Any, site: Site, tmp_path: Path
) -> None:
    for number in range(3):
        Image.new("RGB", (64, 64), (60 * number, 0, 90)).save(tmp_path / f"p{number}.png")
        if number < 2:
            (tmp_path / f"p{number}.txt").write_text(f"picture {number}")
    tab(page, "Train")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload images and captions").click()
    chooser.value.set_files([str(path) for path in sorted(tmp_path.iterdir())])
    expect(page.locator("#survey")).to_contain_text("p2.png: has no caption", timeout=LONG)
    expect(page.locator("#survey")).to_contain_text("2 images of 64×64")
    folder = Path(box(page, "#data").input_value())
    assert folder.is_relative_to(site.output / "uploads")
    cells = page.locator("#captions [role=gridcell]")
    names = [text.strip() for text in cells.all_inner_texts()]
    for picture, caption in (("p1.png", "a better caption"), ("p2.png", "its first caption")):
        cells.nth(names.index(picture) + 1).dblclick()
        page.keyboard.press("Control+A")
        page.keyboard.type(caption)
        page.keyboard.press("Enter")
        page.wait_for_timeout(500)
    page.locator("#save-captions").click()
    expect(page.locator("#survey")).to_contain_text("2 captions written", timeout=LONG)
    texts = {path.name: path.read_text() for path in folder.glob("*.txt")}
    assert texts["p1.txt"] == "a better caption\n" and texts["p2.txt"] == "its first caption\n"


def test_a_training_that_was_stopped_goes_on(page: Any, site: Site) -> None:
    begin_training(page, "halted", {"Steps": "36", "Rank": "2", "Preview every": "36"})
    expect(page.locator("#train-status")).to_contain_text(re.compile(r"step \d+ of 36"), timeout=LONG)
    page.locator("#stop").click()
    assert "the state is saved" in ended(page, "#train-status")
    opened(page, site)  # the form is as it was
    tab(page, "Train")
    expect(box(page, "#train-name")).to_have_value("halted", timeout=LONG)
    expect(
        page.locator("#train-options label", has_text="Rank").first.locator("input, textarea")
    ).to_have_value("2")
    expect(page.locator("#train-status")).to_contain_text("the state is saved", timeout=LONG)
    before = shown(page, "#train-status")
    page.locator("#train").click()
    assert "done in" in ended(page, "#train-status", before=before)
    assert (site.output / "adapters" / "halted.safetensors").exists()


def test_a_mix_is_kept_at_a_rank_and_tells_what_it_lost(page: Any, site: Site) -> None:
    tab(page, "Blend")
    for name in ("dots", "glow"):
        pick(page, name, "blend-")
    page.get_by_text("Keep this mix").click()
    fill(page, "#keep-name", "thin")
    fill(page, "#keep-rank", "1")
    page.wait_for_timeout(500)
    page.locator("#keep").click()
    assert re.search(r"kept as thin: [1-9][\d.]*% of ΔW lost", ended(page, "#kept"))
    assert set(inspect(site.output / "adapters" / "thin.safetensors").ranks) == {1}


def test_a_mix_is_baked_into_a_copy_of_the_base_once(page: Any, site: Site) -> None:
    tab(page, "Blend")
    pick(page, "dots", "blend-")
    page.get_by_text("Keep this mix").click()
    fill(page, "#keep-name", "dotted")
    page.wait_for_timeout(500)
    page.locator("#bake").click()
    assert "kept as" in ended(page, "#kept")
    assert (site.output / "bases" / "dotted" / "model_index.json").exists()
    before = shown(page, "#kept")
    page.locator("#bake").click()
    assert "already" in ended(page, "#kept", before=before)
