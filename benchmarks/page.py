"""What the web UI costs: its start, and what a picture costs more through the page than from Python."""

import multiprocessing
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.measure import Timing, interleaved
from benchmarks.report import Section, held
from difflora import Adapter, Request, Stack, generate, load, read, write
from tests.webui.serving import SHAPES, Site, random_adapter, serve

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
STARTS = 3
PROMPT = "a red circle on a blue background"
SEED = 7


@dataclass(frozen=True, slots=True)
class PageCost:
    """How much is drawn: `count` pictures of `steps` steps, `rounds` times each way."""

    steps: int = 25
    count: int = 4
    rounds: int = 24

    def quick(self) -> "PageCost":
        return PageCost(steps=4, count=1, rounds=2)


def page_sections(options: PageCost) -> list[Section]:
    """Starts pages and draws with one of them; Chromium opens it where there is one."""
    starts = [_start() for _ in range(STARTS)]
    times = _drawn(options)
    python, page, dialled = (times[name] for name in ("python", "page", "dialled"))
    what = "can be used" if CHROMIUM else "answers (there is no browser to use it)"
    started = f"{statistics.median(starts):.1f} s (longest {max(starts):.1f} s)"
    cost, moved = page.median / python.median, dialled.median / page.median
    rows = [
        (f"from the command to a page that {what}", started, held(max(starts), "≤ 15 s")),
        (f"{options.count} pictures of {options.steps} steps from Python", str(python), ""),
        ("the same through the page", f"{page} ({cost:.3f} times)", held(cost, "≤ 1.05")),
        ("the same with another weight each time", f"{dialled} ({moved:.3f} times)", held(moved, "≤ 1.05")),
    ]
    return [Section("Web UI", _ABOUT, ("what", "time", "goal"), tuple(rows))]


_ABOUT = (
    "On the embedded base with one adapter of rank 2. Medians of interleaved runs, ± half the distance of "
    "the quartiles. Through the page a picture is drawn by the worker process, kept with its recipe, and "
    "fetched over one connection, as a browser does; that is held against `generate` alone, in a process "
    "that does nothing else, and a weight that was moved against one that was not."
)


def _drawn(options: PageCost) -> dict[str, Timing]:
    import httpx
    from gradio_client import Client

    adapter = random_adapter("dots", 0)
    settings = {"steps": options.steps, "seed": SEED, "batch": options.count}
    with (
        _folder(adapter) as output,
        serve(output) as site,
        httpx.Client() as browser,
        _python(output / "adapters" / "dots.safetensors", settings) as python,
    ):
        client = Client(site.url, verbose=False, download_files=False)
        weights = iter(range(10_000))

        def through(weight: Callable[[], float]) -> Callable[[], Any]:
            def draw() -> None:
                mix = {"dots": weight()}
                drawn = client.predict(PROMPT, "", mix, settings, options.count, api_name="/generate")
                for file in drawn:
                    browser.get(f"{site.url}gradio_api/file={file['path']}").raise_for_status()

            return draw

        return interleaved(
            {
                "python": python,
                "page": through(lambda: 0.5),
                "dialled": through(lambda: 0.2 + 0.01 * next(weights)),
            },
            rounds=options.rounds,
            warmup=2,
        )


@contextmanager
def _python(adapter: Path, settings: dict[str, int]) -> Iterator[Callable[[], None]]:
    """Draws a batch from Python when it is called, in a process of its own: threads beside it would cost."""
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=_draw_when_asked, args=(its, adapter, settings), daemon=True)
    process.start()

    def draw() -> None:
        ours.send(True)
        ours.recv()

    try:
        yield draw
        ours.send(False)
        process.join(60)
    finally:
        process.kill()


def _draw_when_asked(asked: Connection, adapter: Path, settings: dict[str, int]) -> None:
    model, stack = load(SHAPES), Stack([(read(adapter), 0.5)])
    request = Request.model_validate({"prompt": PROMPT, **settings})
    while asked.recv():
        generate(model, request, stack=stack)
        asked.send(True)


@contextmanager
def _folder(adapter: Adapter) -> Iterator[Path]:
    """A folder for a page, with one adapter in its library."""
    with tempfile.TemporaryDirectory() as name:
        output = Path(name)
        (output / "adapters").mkdir()
        write(adapter, output / "adapters" / f"{adapter.meta.name}.safetensors")
        yield output


def _start() -> float:
    """Seconds from the command to a page whose events work; the browser is open before."""
    with tempfile.TemporaryDirectory() as output:
        if CHROMIUM is None:
            started = time.perf_counter()
            with serve(Path(output)):
                return time.perf_counter() - started
        from playwright.sync_api import sync_playwright

        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page()
            started = time.perf_counter()
            with serve(Path(output)) as site:
                return _usable(page, site) - started


def _usable(page: Any, site: Site) -> float:
    """The moment at which the counter follows what is typed into the prompt."""
    page.goto(site.url)
    page.locator("#prompt textarea").fill(PROMPT)
    page.locator("#counter", has_text=re.compile(r"[1-9]\d* tokens")).wait_for(timeout=120_000)
    return time.perf_counter()
