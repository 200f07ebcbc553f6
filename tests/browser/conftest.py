"""The page as a user meets it: the real app in a process of its own, and Debian's Chromium in front of it."""

import shutil
from collections.abc import Iterator

import pytest
from safetensors.torch import load_file, save_file

from difflora import write
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
