"""The whole training loop, `train()`, against that of diffusers' LoRA scripts with PEFT: base, folder, rank,
targets and batch alike, latents and text states encoded beforehand."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from peft import LoraConfig
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.measure import Row, Timing, interleaved
from benchmarks.peers import ATTENTION, BASE, base
from benchmarks.report import held
from difflora.data.images import open_image
from difflora.families.model import Model
from difflora.training.config import TrainConfig, configure
from difflora.training.loop import train
from train_scripts.shapes.pictures import to_tensor

DATA = BASE.parent / "styles" / "halftone"
RANK, BATCH, RATE, ROUNDS, WARMUP = 16, 8, 1e-4, 20, 2
STRETCH = 5  # steps of a loop before it is the other's turn: in a training they follow each other
ALIKE = 0.25  # what the mean losses may differ by: noise and timesteps are drawn by each loop itself


def loop_row() -> Row:
    """Images a second of the two loops, a stretch of each in turn."""
    mine: list[float] = []
    theirs: list[float] = []
    with TemporaryDirectory() as folder:
        ours, peer = train(_config(Path(folder))), peer_losses(base())
        stretches = interleaved(
            {
                "ours": lambda: mine.extend(report.loss for report in islice(ours, STRETCH)),
                "peer": lambda: theirs.extend(islice(peer, STRETCH)),
            },
            rounds=ROUNDS,
            warmup=WARMUP,
        )
        ours.close()
    times = {name: Timing(one.median / STRETCH, one.spread / STRETCH) for name, one in stretches.items()}
    _require_alike(sum(mine) / len(mine), sum(theirs) / len(theirs))
    faster = times["peer"].median / times["ours"].median
    return Row(
        f"whole training loop, embedded base, batch {BATCH}, rank {RANK}, {torch.get_num_threads()} threads",
        str(times["ours"]),
        str(times["peer"]),
        faster,
        "images/s, ours / PEFT's",
        held(faster, "≥ 1.05"),
    )


def _config(output: Path) -> TrainConfig:
    return configure(
        {
            "base_model": str(BASE),
            "data": DATA,
            "output": output,
            "name": "timed",
            "resolution": 128,
            "rank": RANK,
            "targets": "attn",
            "batch_size": BATCH,
            "learning_rate": RATE,
            "steps": STRETCH * (ROUNDS + WARMUP) + 1,  # what the last step writes is not timed
            "save_every": 1000,
            "caption_dropout": 0.0,
            "train_text_encoder": False,
            "precision": "fp32",
            "device": "cpu",
            "tensorboard": False,
        }
    )


def peer_losses(model: Model) -> Iterator[float]:
    """The loss of each step of a training as diffusers' `train_text_to_image_lora.py` makes it, with fused
    AdamW; the first is made once everything is encoded."""
    unet = model.pipeline.unet.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=ATTENTION)
    )
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, fused=True)
    rate = get_scheduler("constant", optimizer)
    noising = DDPMScheduler.from_config(model.pipeline.scheduler.config)
    loader = DataLoader(TensorDataset(*encoded(model)), batch_size=BATCH, shuffle=True, drop_last=True)
    unet.train()
    while True:
        for latents, states in loader:
            noise = torch.randn_like(latents)
            times = torch.randint(0, noising.config.num_train_timesteps, (len(latents),))
            prediction = unet(noising.add_noise(latents, noise, times), times, states, return_dict=False)[0]
            loss = F.mse_loss(prediction, noising.get_velocity(latents, noise, times))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
            yield loss.item()


@torch.no_grad()
def encoded(model: Model) -> tuple[Tensor, Tensor]:
    """Latents (N, 4, 16, 16) and text states (N, 32, 128) of the folder's images and captions."""
    pipe, files = model.pipeline, sorted(DATA.glob("*.png"))
    pixels = to_tensor([open_image(file) for file in files])
    latents = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
    captions = [file.with_suffix(".txt").read_text(encoding="utf-8").strip() for file in files]
    tokens = pipe.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    return latents, pipe.text_encoder(tokens.input_ids)[0]


def _require_alike(ours: float, theirs: float) -> None:
    """The row is void unless both learn the same thing."""
    if abs(ours - theirs) > ALIKE * theirs:
        raise AssertionError(f"the peer learns something else: mean loss {theirs:.4f}, ours {ours:.4f}")
