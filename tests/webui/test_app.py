"""The page builds, and is served on this computer only."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from difflora import read_recipe
from webui.app import HOST

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the buttons of the page do. Built in another process: gradio leaves event loops open behind it."""
    code = (
        "import json, pathlib, sys; from webui.app import build; from webui.shared import Settings, Shared;"
        "app = build(Shared(Settings('', '', pathlib.Path(sys.argv[1]))));"
        "keys = ('api_name', 'api_visibility', 'concurrency_id', 'concurrency_limit');"
        "print(json.dumps([{key: getattr(fn, key) for key in keys} for fn in app.fns.values()]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path_factory.mktemp("built"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_buttons_are_the_public_endpoints(events: list[dict[str, Any]]) -> None:
    assert [event["api_name"] for event in events if event["api_visibility"] == "public"] == [
        "generate",
        "train",
    ]


def test_what_computes_runs_one_at_a_time(events: list[dict[str, Any]]) -> None:
    heavy = [event for event in events if event["api_name"] in ("generate", "train")]
    assert {(event["concurrency_id"], event["concurrency_limit"]) for event in heavy} == {("gpu", 1)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def fetch(url: str | urllib.request.Request) -> str:
    with urllib.request.urlopen(url, timeout=120) as answer:
        return str(answer.read().decode())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of `python -m webui`, started as a user starts it."""
    port, folder = free_port(), tmp_path_factory.mktemp("served")
    command = [sys.executable, "-m", "webui", "--port", str(port), "--output", str(folder)]
    # Settings that would open it to others must not.
    environment = {**os.environ, "GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SHARE": "True"}
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 90
            while not answers(port):
                assert process.poll() is None and time.monotonic() < deadline, (
                    folder / "log.txt"
                ).read_text()
                time.sleep(0.2)
            yield f"http://{HOST}:{port}/"
        finally:
            process.terminate()
            process.wait(timeout=30)


def answers(port: int, host: str = HOST) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def test_the_page_is_served(server: str) -> None:
    page = fetch(server)
    assert "difflora" in page and "Generate" in page


def test_it_listens_on_the_loopback_address_only(server: str) -> None:
    port = int(server.rstrip("/").rsplit(":", 1)[1])
    listening = re.findall(
        rf"\b([0-9A-F]{{8}}):{port:04X} 00000000:0000 0A", Path("/proc/net/tcp").read_text()
    )
    assert listening == ["0100007F"]


def test_the_page_loads_nothing_from_elsewhere(server: str) -> None:
    loaded = re.findall(r"""(?:src|href)=["'](https?://[^"']+)""", fetch(server))
    assert not [url for url in loaded if not url.startswith(f"http://{HOST}")]
    assert "http" not in re.sub(r"http://www\.w3\.org/\S+", "", fetch(f"{server}theme.css"))


def click(server: str, button: str, changes: Mapping[str, Any]) -> list[Any]:
    """What a click puts on the page; `changes` maps labels to values, other inputs stay as served."""
    config = json.loads(fetch(f"{server}config"))
    parts = {part["id"]: part["props"] for part in config["components"]}
    (event,) = [event for event in config["dependencies"] if event["api_name"] == button]
    values = [changes.get(parts[i].get("label"), parts[i].get("value")) for i in event["inputs"]]
    body = json.dumps({"data": values}).encode()
    post = urllib.request.Request(
        f"{server}gradio_api/call/{button}", body, {"Content-Type": "application/json"}
    )
    call = json.loads(fetch(post))["event_id"]
    stream = fetch(f"{server}gradio_api/call/{button}/{call}")
    return json.loads(stream.rsplit("data: ", 1)[1])


def test_a_click_on_generate_shows_a_png_with_its_recipe(server: str, tmp_path: Path) -> None:
    gallery, status = click(server, "generate", {"Prompt": "a red circle", "Steps": "2", "Seed": "7"})
    assert status.startswith("00001-7.png in ")
    (shown,) = gallery
    with urllib.request.urlopen(shown["image"]["url"], timeout=30) as answer:
        (tmp_path / "shown.png").write_bytes(answer.read())
    recipe = read_recipe(tmp_path / "shown.png")
    assert (recipe.seed, recipe.request.prompt, recipe.request.steps) == (7, "a red circle", 2)


def test_an_error_is_told_in_the_status(server: str) -> None:
    _, status = click(server, "generate", {"Prompt": "a <lora:nobody:1> circle", "Steps": "1"})
    assert status.startswith("Error: ") and "nobody" in status
    *_, status, _ = click(server, "train", {"Folder of images": "/there/is/none"})
    assert "/there/is/none" in status
