"""The app: a page with one tab for each entry of TABS, served on the loopback address."""

from pathlib import Path
from typing import Annotated

import gradio as gr
import tyro

from webui.shared import Settings, Shared
from webui.tabs import TABS

HOST = "127.0.0.1"


def build(shared: Shared) -> gr.Blocks:
    """The page, not yet served."""
    with gr.Blocks(title="difflora", analytics_enabled=False) as app:
        for tab in TABS:
            with gr.Tab(tab.title):
                tab.build(shared)
    return app


def main(
    port: Annotated[int, tyro.conf.arg(help="port on 127.0.0.1")] = 7860,
    base_model: Annotated[
        str, tyro.conf.arg(help="base that the forms begin with")
    ] = "sample_data/shapes-sd",
    data: Annotated[
        str, tyro.conf.arg(help="folder to learn from, to begin with")
    ] = "sample_data/styles/halftone",
    output: Annotated[Path, tyro.conf.arg(help="folder for images and trained adapters")] = Path("outputs"),
    browser: Annotated[bool, tyro.conf.arg(help="open the page in a browser")] = False,
) -> None:
    """Train and draw in the browser."""
    app = build(Shared(Settings(base_model, data, output)))
    print(f"difflora is at http://{HOST}:{port} (Ctrl-C ends it)", flush=True)
    app.queue(max_size=64).launch(
        server_name=HOST,
        server_port=port,
        inbrowser=browser,
        share=False,
        quiet=True,
        show_error=True,
        ssr_mode=False,
        mcp_server=False,
        footer_links=[],
        allowed_paths=[str(output.resolve())],
        theme=gr.themes.Default(),
    )
