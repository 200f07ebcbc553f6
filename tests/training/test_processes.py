"""Two processes on the CPU learn what one does with the same global batch."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from difflora.adapter import Adapter
from difflora.formats import read
from difflora.training.config import TrainConfig
from tests.training.processes import run

STEPS = 8


def _train(config: TrainConfig, path: Path, *, processes: int) -> Adapter:
    path.write_text(config.model_dump_json())
    script = Path(__file__).with_name("processes.py")
    if processes == 1:
        run(path)
    else:
        command = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            str(processes),
            str(script),
        ]
        environment = os.environ | {"PYTHONPATH": str(script.parents[2]), "OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            [sys.executable, *command, str(path)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert result.returncode == 0, result.stderr[-3000:]
    return read(config.output / "small.safetensors")


def test_two_processes_equal_one(small, five_images: Path, tmp_path: Path) -> None:
    """Five images in global batches of four: the last batch of an epoch has one row, so one process has none.

    Batches of another size round differently, and Adam magnifies that where a gradient is nearly zero: the
    bound is on every factor, and on ΔW over all layers.
    """
    options = {"data": five_images, "save_dtype": "float32", "train_text_encoder": True, "targets": "attn"}
    options |= {"steps": STEPS, "learning_rate": 1e-4}
    one = _train(small(output=tmp_path / "one", batch_size=4, **options), tmp_path / "one.json", processes=1)
    two = _train(small(output=tmp_path / "two", batch_size=2, **options), tmp_path / "two.json", processes=2)
    assert set(one.modules) == set(two.modules)
    for path in one.modules:
        (mine,), (theirs,) = one.modules[path], two.modules[path]
        for leaf, tensor in mine.tensors().items():
            assert torch.allclose(tensor, theirs.tensors()[leaf], atol=1e-5, rtol=0), f"{path} {leaf}"
    difference = sum(float((one.delta(path) - two.delta(path)).square().sum()) for path in one.modules)
    size = sum(float(one.delta(path).square().sum()) for path in one.modules)
    assert (difference / size) ** 0.5 <= 2e-4


def test_the_processes_did_share_the_work(small, five_images: Path, tmp_path: Path) -> None:
    """The negative control: one process alone with half of the batch learns something else."""
    options = {"data": five_images, "steps": STEPS, "save_dtype": "float32"}
    whole = _train(
        small(output=tmp_path / "one", batch_size=4, **options), tmp_path / "one.json", processes=1
    )
    half = _train(
        small(output=tmp_path / "half", batch_size=2, **options), tmp_path / "half.json", processes=1
    )
    distances = [
        (whole.delta(path) - half.delta(path)).norm() / whole.delta(path).norm() for path in whole.modules
    ]
    assert max(distances) > 0.05
