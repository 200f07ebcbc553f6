"""Trainings of every kind: the same bytes when they are interrupted, and a style learned in a short one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from difflora.adapter import Adapter, Stack
from difflora.apply import applied
from difflora.encode import encode
from difflora.families.model import Model
from difflora.formats import inspect, read
from difflora.inject.table import TRAINABLE
from difflora.training.config import configure
from difflora.training.loop import train
from difflora.training.loss import Diffusion, draw

STARTS = [(kind, init) for kind, inits in TRAINABLE.items() for init in inits]
STYLE = Path(__file__).parents[2] / "sample_data" / "styles" / "halftone"
RATES = {"lora": 2e-3, "dora": 2e-3, "loha": 2e-3, "lokr": 4e-3, "full": 2e-4}


@pytest.mark.parametrize(("kind", "init"), STARTS)
def test_an_interrupted_run_gives_the_same_bytes(small, tmp_path: Path, kind: str, init: str) -> None:
    options = {"kind": kind, "init": init, "targets": r"mid_block.*(attn2\.to_v|conv1)$", "steps": 4}
    whole = list(train(small(output=tmp_path / "whole", **options)))[-1].adapter
    config = small(**options)
    interrupted = train(config)
    for _ in range(3):  # one step after the checkpoint that was due
        next(interrupted)
    interrupted.close()
    resumed = list(train(config))
    assert resumed[0].step == 4 and resumed[0].adapter is not None and whole is not None
    assert resumed[0].adapter.read_bytes() == whole.read_bytes()
    adapter = read(whole)
    assert {kind.name for kinds in adapter.modules.values() for kind in kinds} == {kind}
    assert not inspect(whole).unmatched
    assert adapter.meta.training["ss_network_init"] == init


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A style's images, one half to learn from, one to be judged on."""
    folders = tuple(tmp_path_factory.mktemp(name) for name in ("seen", "held_out"))
    for number, image in enumerate(sorted(STYLE.glob("*.png"))):
        for file in (image, image.with_suffix(".txt")):
            (folders[number % 2] / file.name).write_bytes(file.read_bytes())
    return folders[0], folders[1]


@torch.no_grad()
def denoising_loss(model: Model, images: Path) -> float:
    """Mean error on images at the same noise and timesteps for every adapter."""
    files = sorted(images.glob("*.png"))
    pixels = torch.tensor(np.stack([np.array(Image.open(file).convert("RGB")) for file in files]))
    captions = [file.with_suffix(".txt").read_text().strip() for file in files]
    schedule = model.noise_schedule()
    diffusion = Diffusion(schedule.alphas_cumprod, schedule.prediction_type)
    config = configure({"base_model": model.source, "data": images, "output": "x", "name": "x", "steps": 1})
    latents, _ = model.encode_images(pixels.permute(0, 3, 1, 2) / 127.5 - 1)
    noised = draw(latents, diffusion, config, seed=1, batch=0, rows=range(len(files)))
    hidden = encode(model, captions).hidden
    predicted = model.pipeline.unet(noised.noisy, noised.timesteps, hidden).sample
    return float((predicted - noised.target).square().mean())


def learned(model: Model, adapter: Adapter, images: Path) -> float:
    with applied(model, Stack([(adapter, 1.0)]), mode="merged"):
        return denoising_loss(model, images)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "init"), STARTS)
def test_every_kind_learns_a_style(
    shapes_model: Model, halves: tuple[Path, Path], tmp_path: Path, kind: str, init: str
) -> None:
    """On images that it has not seen the error falls by a tenth at least; the base's is the start."""
    seen, held_out = halves
    config = configure(
        {
            "preset": "style",
            "base_model": shapes_model.source,
            "data": seen,
            "output": tmp_path,
            "name": "style",
            "kind": kind,
            "init": init,
            "learning_rate": RATES[kind],
            "steps": 150,
            "device": "cpu",
            "threads": 1,
            "tensorboard": False,
        }
    )
    last = list(train(config))[-1]
    assert last.adapter is not None
    before = denoising_loss(shapes_model, held_out)
    assert learned(shapes_model, read(last.adapter), held_out) < 0.9 * before
