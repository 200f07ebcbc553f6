"""The page as a user meets it: the real app in a process of its own, and Debian's Chromium in front of it."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from playwright.sync_api import sync_playwright
from safetensors.torch import load_file, save_file

from difflora import write
from tests.browser.steps import opened
from tests.webui.serving import ROOT, Site, random_adapter, serve

FIXTURES = ROOT / "tests" / "fixtures" / "adapters"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CANARY = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A page with two adapters for the base, one for another family, and one with evil words in it."""
    output = tmp_path_factory.mktemp("site")
    adapters = output / "adapters"
    adapters.mkdir()
    for seed, name in enumerate(("dots", "glow")):
        write(random_adapter(name, seed), adapters / f"{name}.safetensors")
    shutil.copy(FIXTURES / "kohya_sdxl_diffnames_lora.safetensors", adapters / "xl.safetensors")
    evil = load_file(adapters / "dots.safetensors")
    words = {"modelspec.title": CANARY, "modelspec.trigger_phrase": CANARY, "ss_sd_model_name": CANARY}
    save_file(evil, adapters / "evil.safetensors", metadata=words)
    with serve(output) as site:
        yield site


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; without it the tests are skipped."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium (the CI set-up does, as root)")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, site: Site) -> Iterator[Any]:
    """The page, freshly opened; a request to anywhere else, or an error in a script, fails the test."""
    forget(site)
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


def forget(site: Site) -> None:
    """Makes the jobs so far somebody else's: the page begins as a new user's."""
    with closing(sqlite3.connect(site.output / "jobs" / "jobs.sqlite", timeout=20)) as database, database:
        database.execute(
            "update jobs set owner = 'the one before' where state in ('done', 'failed', 'cancelled')"
        )


def is_foreign(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1", "data:", "blob:"))
