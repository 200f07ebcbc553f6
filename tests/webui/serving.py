"""The real page in a process of its own, as a user starts it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from difflora import Adapter, AdapterMeta, outline
from difflora.kinds import LoRA

ROOT = Path(__file__).parents[2]
SHAPES = ROOT / "sample_data" / "shapes-sd"


@dataclass(frozen=True)
class Site:
    """A page that is served, and the folder that it works in."""

    url: str
    output: Path


@contextmanager
def serve(output: Path, *flags: str) -> Iterator[Site]:
    """The page on a free port for the length of a `with` block, ended as by its user."""
    port = free_port()
    command = [sys.executable, "-m", "webui", "--port", str(port), "--output", str(output), *flags]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(output / "gradio")}
    with (output / "page.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not answers(port):
            told = (output / "page.log").read_text()
            assert process.poll() is None and time.monotonic() < deadline, told
            time.sleep(0.1)
        yield Site(f"http://127.0.0.1:{port}/", output)
    finally:
        process.terminate()
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def random_adapter(name: str, seed: int) -> Adapter:
    """A LoRA of rank 2 on the attention of the embedded base, strong enough to be seen."""
    source = torch.Generator().manual_seed(seed)
    modules = {}
    for path, shape in outline(SHAPES).shapes().items():
        if path.startswith("unet.") and ".attn" in path and len(shape) == 2:
            down = torch.randn(2, shape[1], generator=source) / shape[1] ** 0.5
            modules[path] = (LoRA(down, torch.randn(shape[0], 2, generator=source) * 0.2, 1.0),)
    return Adapter(modules, AdapterMeta(name=name, family="sd1", trigger=f"{name} style"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
