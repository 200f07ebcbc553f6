"""What people do in the page: train, draw, blend, keep, come back, and run into walls that say why."""

import base64
import re
import shutil
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import expect

from difflora import read_recipe
from tests.browser.steps import LONG, begin_training, card, draw, ended, fill, opened, pick, shown, steps, tab
from tests.webui.serving import Site


def newest(site: Site, name: str) -> Path:
    return max(site.output.glob(f"jobs/*/{name}"), key=lambda path: path.stat().st_mtime)


def drop(page: Any, where: str, picture: Path) -> None:
    """Drags a file out of a folder onto an element."""
    transfer = page.evaluate_handle(
        """([bytes, name]) => {
            const transfer = new DataTransfer();
            const data = Uint8Array.from(atob(bytes), (one) => one.charCodeAt(0));
            transfer.items.add(new File([data], name, { type: "image/png" }));
            return transfer;
        }""",
        [base64.b64encode(picture.read_bytes()).decode(), picture.name],
    )
    page.dispatch_event(where, "drop", {"dataTransfer": transfer})


def test_a_prompt_becomes_a_picture_with_its_recipe(page: Any, site: Site) -> None:
    assert "done in" in draw(page, "a red circle on a blue background")
    expect(page.locator("#gallery img").first).to_be_visible()
    expect(page.locator("#infotext textarea")).to_have_value(re.compile("a red circle.*Seed", re.S))
    assert read_recipe(newest(site, "00-*.png")).request.steps == 4


def test_tokens_are_counted_while_typing(page: Any) -> None:
    page.locator("#prompt textarea").fill("a red circle")
    expect(page.locator("#counter")).to_have_text("3 tokens", timeout=LONG)
    page.locator("#prompt textarea").fill("a red circle <lora:dots:0.7>")
    page.locator("#negative textarea").fill("a star")
    expect(page.locator("#counter")).to_have_text("3 tokens · 2 negative", timeout=LONG)


def test_an_adapter_joins_tells_what_it_is_and_changes_the_picture(page: Any, site: Site) -> None:
    pick(page, "dots")
    row = page.locator(".mix-row").first
    expect(row).to_contain_text("rank 2", timeout=LONG)
    expect(row).to_contain_text("‖ΔW‖")
    page.locator("#words-0").click()
    expect(page.locator("#prompt textarea")).to_have_value("dots style")
    weight = page.get_by_label("number input for dots").first
    weight.fill("0.6")
    weight.press("Tab")
    page.locator("#compare input").check()
    assert "done in" in draw(page, "a red circle on a blue background, dots style")
    recipe = read_recipe(newest(site, "00-*[0-9].png"))
    assert [(one.name, one.unet) for one in recipe.adapters] == [("dots", 0.6)]
    assert read_recipe(newest(site, "00-*-off.png")).adapters == ()
    expect(page.locator("#slider")).to_be_visible()
    opened(page, site)  # the form is as it was, but for the seed: the next picture is another one
    expect(row).to_contain_text("rank 2", timeout=LONG)
    expect(weight).to_have_value("0.6")
    expect(page.locator("#prompt textarea")).to_have_value("a red circle on a blue background, dots style")
    expect(page.locator("#compare input")).to_be_checked()
    expect(page.locator("#seed textarea, #seed input").first).to_have_value("")
    page.locator("#remove-0").click()
    expect(row).to_be_hidden()


def test_a_tag_in_the_prompt_joins_the_mix(page: Any, site: Site) -> None:
    assert "done in" in draw(page, "a red circle <lora:glow:0.5>")
    assert [one.name for one in read_recipe(newest(site, "00-*.png")).adapters] == ["glow"]
    status = draw(page, "a red circle <lora:nobody:1>")
    assert "nobody" in status and "Error" in status


def test_a_name_that_is_no_adapter_is_answered(page: Any) -> None:
    box = page.locator("#picker input")
    box.fill("nobody")
    box.press("Enter")
    expect(page.locator("#message")).to_contain_text("nobody", timeout=LONG)
    expect(page.locator("#message")).to_contain_text("Error")


def test_an_adapter_of_another_family_is_refused_with_the_reason(page: Any) -> None:
    pick(page, "xl")
    expect(page.locator("#message")).to_contain_text("does not fit", timeout=LONG)
    expect(page.locator(".mix-row").first).to_be_hidden()


def test_text_out_of_files_is_shown_as_text(page: Any, site: Site) -> None:
    pick(page, "evil")
    expect(page.locator("#words-0")).to_contain_text("<script>", timeout=LONG)
    name = "<img src=x onerror='window.hacked = 1'>"
    shutil.copy(
        site.output / "adapters" / "evil.safetensors", site.output / "adapters" / f"{name}.safetensors"
    )
    tab(page, "Library")
    page.locator("#library-refresh").click()
    expect(card(page, name)).to_be_visible(timeout=LONG)
    for words in ("evil", name):
        card(page, words).click()
        expect(page.locator("#details h3")).to_have_text(words, timeout=LONG)
        expect(page.locator("#details")).to_contain_text("<script>")
    tab(page, "Generate")
    page.locator("#refresh").click()
    pick(page, name)
    expect(page.locator("#message")).to_contain_text(f"{name} joined the mix", timeout=LONG)
    (site.output / "adapters" / f"{name}.safetensors").unlink()


def test_ctrl_up_and_down_dial_the_weight_under_the_cursor(page: Any) -> None:
    box = page.locator("#prompt textarea")
    box.fill("a <lora:dots:0.5> ring")
    box.evaluate("box => box.setSelectionRange(6, 6)")
    box.press("Control+ArrowUp")
    assert box.input_value() == "a <lora:dots:0.55> ring"
    box.fill("<lora:a:0.7:0.5>")
    box.evaluate("box => box.setSelectionRange(14, 14)")
    box.press("Control+ArrowUp")
    assert box.input_value() == "<lora:a:0.7:0.55>"
    box.fill("<lora:a:0.5:unet=0.8>")
    for cursor, text in ((10, "<lora:a:0.55:unet=0.8>"), (20, "<lora:a:0.55:unet=0.85>")):
        box.evaluate("(box, cursor) => box.setSelectionRange(cursor, cursor)", cursor)
        box.press("Control+ArrowUp")
        assert box.input_value() == text
    box.fill("<lora:a>")
    box.evaluate("box => box.setSelectionRange(7, 7)")
    box.press("Control+ArrowDown")
    assert box.input_value() == "<lora:a:0.95>"
    box.fill("<lora:a:1>1girl")
    box.evaluate("box => box.setSelectionRange(9, 9)")
    box.press("Control+ArrowUp")
    assert box.input_value() == "<lora:a:1.05>1girl"
    box.fill("a ring")
    box.evaluate("box => box.setSelectionRange(4, 4)")
    box.press("Control+ArrowDown")
    assert box.input_value() == "a (ring:0.95)"


def test_a_reload_in_the_middle_of_a_job_loses_nothing(page: Any, site: Site) -> None:
    fill(page, "#prompt", "a green star on a white background")
    steps(page, 60)
    page.locator("#generate").click()
    expect(page.locator("#status")).to_contain_text("of 60", timeout=LONG)
    opened(page, site)
    expect(page.locator("#status")).to_contain_text("of 60", timeout=LONG)
    expect(page.locator("#live img")).to_be_visible(timeout=LONG)
    assert "done in" in ended(page)
    expect(page.locator("#infotext textarea")).to_have_value(re.compile("a green star"))


def test_escape_cancels_within_a_step_and_the_next_job_is_done(page: Any) -> None:
    fill(page, "#prompt", "a teal heart")
    steps(page, 100)
    page.locator("#generate").click()
    expect(page.locator("#status")).to_contain_text("of 100", timeout=LONG)
    started = time.monotonic()
    page.keyboard.press("Escape")
    assert "cancelled" in ended(page) and time.monotonic() - started < 10
    assert "done in" in draw(page, "a teal heart")


def test_settings_come_back_from_a_picture(page: Any, site: Site) -> None:
    pick(page, "glow")
    expect(page.locator(".mix-row").first).to_be_visible(timeout=LONG)
    draw(page, "a pink diamond on a black background", 5)
    picture = newest(site, "00-*.png")
    opened(page, site)
    drop(page, "#restore button", picture)
    expect(page.locator("#prompt textarea")).to_have_value(
        "a pink diamond on a black background", timeout=LONG
    )
    expect(page.locator(".mix-row").first).to_contain_text("glow")
    seed = str(read_recipe(picture).seed)
    expect(page.locator("#seed input, #seed textarea").first).to_have_value(seed)


def test_two_adapters_are_blended_a_cell_gives_its_weights_and_the_mix_is_kept(page: Any, site: Site) -> None:
    tab(page, "Blend")
    for name in ("dots", "glow"):
        pick(page, name, "blend-")
    expect(page.locator("#down input")).to_have_value("glow", timeout=LONG)
    page.locator("#blend-words-0").click()
    expect(page.locator("#blend-text textarea")).to_have_value("dots style", timeout=LONG)
    fill(page, "#blend-text", "a red ring on a yellow background")
    fill(page, "#columns", "0, 0.5, 1")
    fill(page, "#rows", "0, 1")
    box = page.locator("#blend-steps input[type=number]")
    box.fill("3")
    box.press("Tab")
    page.locator("#blend-text textarea").press("Control+Enter")
    assert "done in" in ended(page, "#blend-status")
    cells = page.locator("#cells .thumbnail-item")
    expect(cells).to_have_count(6)
    opened(page, site)
    tab(page, "Blend")
    expect(cells).to_have_count(6, timeout=LONG)
    expect(page.locator("#blend-text textarea")).to_have_value("a red ring on a yellow background")
    expect(page.locator("#columns textarea, #columns input").first).to_have_value("0, 0.5, 1")
    weight = page.locator("#blend-weight-0 input[type=number]")
    expect(weight).to_have_value("1", timeout=LONG)
    expect(cells.nth(4)).to_contain_text("→ 0.5 ↓ 1")
    cells.nth(4).click()
    expect(weight).to_have_value("0.5", timeout=LONG)
    expect(page.locator("#blend-weight-1 input[type=number]")).to_have_value("1")
    page.get_by_text("How they meet").click()
    page.locator("#meet").click()
    expect(page.locator("#meeting")).to_contain_text("of it is in the sum", timeout=LONG)
    page.get_by_text("Keep this mix").click()
    name = page.locator("#keep-name input, #keep-name textarea").first
    expect(name).to_have_value("my-blend", timeout=LONG)  # what is typed before it is filled in would be lost
    page.wait_for_timeout(500)
    fill(page, "#keep-name", "both")
    expect(name).to_have_value("both")
    page.locator("#keep").click()
    assert "exact" in ended(page, "#kept")
    assert (site.output / "adapters" / "both.safetensors").exists()
    cell, cover = newest(site, "cell-01-01.png"), site.output / "adapters" / "both.preview.png"
    assert cover.read_bytes() == cell.read_bytes()
    tab(page, "Library")
    expect(page.locator("#cards button", has_text="both").first).to_be_visible(timeout=LONG)
    tab(page, "Blend")
    page.locator("#blend-use").click()
    expect(page.locator("#prompt textarea")).to_have_value("a red ring on a yellow background", timeout=LONG)
    expect(page.locator("#weight-0 input[type=number]")).to_have_value("0.5")
    draw(page, "a red ring on a yellow background", 3)
    drawn = read_recipe(newest(site, "00-*.png"))
    assert [(one.name, one.unet) for one in drawn.adapters] == [("dots", 0.5), ("glow", 1.0)]
    assert drawn.seed == 1


def test_a_style_is_trained_found_in_the_library_and_drawn_with(page: Any, site: Site) -> None:
    begin_training(page, "lights", {"Steps": "8", "Rank": "4", "Preview every": "4"})
    expect(page.locator("#images img").first).to_be_visible()
    expect(page.locator("#train-status")).to_contain_text("of 8", timeout=LONG)
    assert "done in" in ended(page, "#train-status")
    expect(page.locator("#loss")).to_be_visible()
    for text in ("step 4", "step 8"):
        expect(page.locator("#previews")).to_contain_text(text)
    page.locator("#use").click()
    expect(page.locator(".mix-row").first).to_contain_text("lights", timeout=LONG)
    assert "done in" in draw(page, "a red circle on a blue background, neon style", 6)
    tab(page, "Library")
    page.locator("#library-refresh").click()
    page.locator("#cards button", has_text="lights").first.click()
    expect(page.locator("#details")).to_contain_text("lora", timeout=LONG)


def test_a_broken_image_is_named(page: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG nothing")
    tab(page, "Train")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload images and captions").click()
    chooser.value.set_files(str(broken))
    expect(page.locator("#survey")).to_contain_text("broken.png", timeout=LONG)


def test_a_folder_that_cannot_be_learned_from_says_why(page: Any, tmp_path: Path) -> None:
    tab(page, "Train")
    fill(page, "#data", str(tmp_path / "nothing"))
    page.locator("#check").click()
    expect(page.locator("#survey")).to_contain_text("nothing", timeout=LONG)
    fill(page, "#train-name", "never")
    before = shown(page, "#train-status")
    page.locator("#train").click()
    assert "Error" in ended(page, "#train-status", before=before)


def test_a_base_that_is_none_is_told(page: Any) -> None:
    box = page.locator("#base input")
    box.fill("/there/is/none")
    box.press("Enter")
    expect(page.locator("#base-facts")).to_contain_text("/there/is/none", timeout=LONG)


def test_it_can_be_used_on_a_phone(browser: Any, site: Site) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page = context.new_page()
    opened(page, site)
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 1
    draw(page, "a red circle on a blue background")
    opened(page, site)
    expect(page.locator("#gallery img").first).to_be_visible(timeout=LONG)  # of the visitor's last job
    page.wait_for_timeout(500)
    assert page.evaluate("window.scrollY") == 0
    title = page.locator("#header h2")
    assert title.evaluate("title => title.scrollWidth <= title.closest('.block').clientWidth")
    context.close()
