"""The app: a page with one tab for each entry of TABS, served with a worker process that does the jobs."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import sys
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import fastapi
import gradio as gr
import torch
import tyro
import uvicorn

from difflora import DiffloraError
from webui import api
from webui.parts import header, queue
from webui.passwords import Gate, PasswordError, add_user, read_users
from webui.settings import Settings
from webui.shared import Shared
from webui.tabs import TABS
from webui.tabs.tab import Page
from webui.visitors import Visitors
from webui.worker import Supervisor

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"
ASSETS = Path(__file__).parent / "assets"
MAX_UPLOAD = "64mb"
AT_ONCE = 256  # requests
SAMPLES = Path(__file__).parents[1] / "sample_data"


class PortError(DiffloraError):
    """A port that another program has."""


@dataclass(frozen=True)
class Flags:
    """Train, generate and blend in the browser."""

    port: int = 7860
    """Port of the page."""
    base_model: str = str(SAMPLES / "shapes-sd")
    """Base that the forms begin with: a folder, a .safetensors file, or a Hub id."""
    data: str = str(SAMPLES / "styles" / "halftone")
    """Folder to learn from, to begin with."""
    output: Path = Path("outputs")
    """Folder for pictures, trained adapters and the queue."""
    loras: Annotated[tyro.conf.UseAppendAction[tuple[Path, ...]], tyro.conf.arg(metavar="FOLDER")] = ()
    """A further folder of adapters, such as models/Lora of another program; only read. May be repeated."""
    bases: Annotated[tyro.conf.UseAppendAction[tuple[Path, ...]], tyro.conf.arg(metavar="FOLDER")] = ()
    """A folder of base models to choose from, such as models/Stable-diffusion. May be repeated."""
    browser: bool = False
    """Open the page in a browser."""
    listen: bool = False
    """Let other computers reach the page; needs --auth."""
    auth: Path | None = None
    """File of users, who then have to log in; --add-user writes it."""
    add_user: str | None = None
    """Add a user of this name to the file of --auth, ask for the password, and end."""
    insecure: bool = False
    """With --listen: let everybody in without a password."""


def main(flags: Flags) -> int:
    """Serves the page until Ctrl-C; returns the exit code."""
    try:
        if flags.add_user is not None:
            return _add(flags)
        users = _users(flags)
        shared = Shared(_settings(flags), is_shared=flags.listen)
        with closing(shared.jobs.hold()), _door(flags) as door:  # what stands in the way is told first
            server = fastapi.FastAPI(title="difflora", docs_url=None, redoc_url=None, openapi_url=None)
            app = mounted(server, shared, gate=Gate(users) if users else None)
            torch.set_num_threads(1)  # the page computes little, and the worker needs the cores
            _serve(app, door, Supervisor(shared.jobs, shared.settings), browser=flags.browser)
    except DiffloraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _door(flags: Flags) -> socket.socket:
    """Where browsers knock. Raises PortError if another program has the port."""
    host = EVERYWHERE if flags.listen else LOOPBACK
    # Said to be TCP, for asyncio then sends small answers without waiting for more.
    door = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if os.name != "nt":  # there it would let two programs have the port
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((host, flags.port))
    except (OSError, OverflowError) as error:
        door.close()
        raise PortError(
            f"port {flags.port} cannot be used ({error}). Give another one with --port."
        ) from error
    return door


def _serve(app: fastapi.FastAPI, door: socket.socket, supervisor: Supervisor, *, browser: bool) -> None:
    """Until Ctrl-C or SIGTERM, after which the worker saves what it does."""
    signal.signal(signal.SIGTERM, _end)  # uvicorn sends it on to what was there before
    supervisor.start()
    try:
        url = f"http://{LOOPBACK}:{door.getsockname()[1]}"
        print(f"difflora is at {url} (Ctrl-C ends it)", flush=True)
        if browser:
            import webbrowser

            webbrowser.open(url)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3))
        with suppress(KeyboardInterrupt):
            server.run(sockets=[door])
    finally:
        supervisor.stop()


def _end(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def build(shared: Shared) -> gr.Blocks:
    """The page, not yet served."""
    with gr.Blocks(title="difflora", analytics_enabled=False) as page:
        base = header.build(shared, page)
        handed = gr.State(None)
        with gr.Tabs() as tabs:
            for tab in TABS:
                with gr.Tab(tab.title, id=tab.title.lower()) as shown:
                    tab.build(shared, Page(page, base, handed, tabs, shown))
        queue.build(shared)
        api.build(shared)
    page.queue(max_size=AT_ONCE, default_concurrency_limit=16)
    page.max_threads = AT_ONCE  # whoever follows a job keeps one
    return page


def mounted(server: fastapi.FastAPI, shared: Shared, *, gate: Gate | None) -> fastapi.FastAPI:
    """The page on a server. Nothing is served but what the page itself hands out."""
    app = gr.mount_gradio_app(
        server,
        build(shared),
        path="/",
        auth=gate,
        auth_message=None,
        allowed_paths=[],
        blocked_paths=[str(folder.resolve()) for folder in shared.settings.private],
        max_file_size=MAX_UPLOAD,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        footer_links=["api", "settings"],
        theme=gr.themes.Default(),
        css=(ASSETS / "page.css").read_text(encoding="utf-8"),
        head=f"<script>{(ASSETS / 'keys.js').read_text(encoding='utf-8')}</script>",
    )
    app.add_middleware(Visitors)
    return app


def _settings(flags: Flags) -> Settings:
    settings = Settings(flags.base_model, flags.data, flags.output, tuple(flags.loras), tuple(flags.bases))
    if not settings.adapters.exists():
        _bring_demonstration(settings)
    return settings


def _bring_demonstration(settings: Settings) -> None:
    """Puts the demonstration's adapters into a new library: those that it has made here, else those that come
    along."""
    settings.prepare()
    places = (settings.output / "demo", SAMPLES / "adapters")
    for file in next((found for place in places if (found := sorted(place.glob("*.safetensors")))), []):
        for path in (file, file.with_suffix(".preview.png")):
            if path.exists():
                shutil.copy2(path, settings.adapters / path.name)


def _users(flags: Flags) -> dict[str, str]:
    """Who may log in; nobody has to on a page of this computer alone. Raises PasswordError if others could
    come in without."""
    if flags.listen and flags.auth is None and not flags.insecure:
        raise PasswordError(
            "--listen lets other computers reach the page, and nobody would have to log in. Give --auth FILE "
            "(make it with --auth FILE --add-user NAME), or --insecure if all of them may use it."
        )
    return {} if flags.auth is None else read_users(flags.auth)


def _add(flags: Flags) -> int:
    if flags.auth is None or flags.add_user is None:
        raise PasswordError("--add-user needs --auth FILE, the file that the user is written to.")
    add_user(flags.auth, flags.add_user, getpass.getpass(f"Password of {flags.add_user}: "))
    print(f"{flags.add_user} can log in with --auth {flags.auth}")
    return 0
