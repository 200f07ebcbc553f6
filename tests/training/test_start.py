"""How a run starts: what is wrong is told before the work that it would spoil, and what a run goes on from is
its own."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from difflora.errors import CheckpointError, ConfigError
from difflora.training import identity as identity_module
from difflora.training import run as run_module
from difflora.training.checkpoint import Checkpoint, Manifest, latest
from difflora.training.config import TrainConfig
from difflora.training.examples import Examples
from difflora.training.identity import resume_notes
from difflora.training.loop import train
from difflora.training.machine import Machine, pick_precision, start_machine
from difflora.training.results import results_of
from difflora.training.run import prepared


def stop_after(config: TrainConfig, steps: int) -> None:
    reports = train(config)
    for _ in range(steps):
        next(reports)
    reports.close()


def refuse(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("the run went on")


def test_an_optimizer_that_is_not_there_is_told_before_the_base_is_loaded(
    small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "load", refuse)
    with pytest.raises(ConfigError, match="adamw8bit' needs"):
        next(train(small(optimizer="adamw8bit")))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"targets": "nothing of that name"}, "matches no layer"),
        ({"clip_skip": 9}, "clip_skip=9 is not possible"),
        ({"clip_skip": 9, "train_text_encoder": True}, "clip_skip=9 is not possible"),
        ({"bucket_step": 48}, "no multiple of bucket_step 48"),
    ],
)
def test_what_the_base_cannot_follow_is_told_before_an_image_is_encoded(
    small, monkeypatch: pytest.MonkeyPatch, changes: dict, words: str
) -> None:
    monkeypatch.setattr(Examples, "prepare", refuse)
    with pytest.raises(ConfigError, match=words):
        next(train(small(**changes)))


def test_the_peak_of_memory_is_that_of_the_steps(small, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    prepare = Examples.prepare
    monkeypatch.setattr(Examples, "prepare", lambda examples: (prepare(examples), seen.append("prepared")))
    monkeypatch.setattr(Machine, "forget_peak", lambda machine: seen.append("forgotten"))
    with prepared(small(), results_of(small())):
        assert seen == ["prepared", "forgotten"]


def test_only_a_gpu_forgets_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", forgotten.append)
    for device in ("cpu", "cuda"):
        accelerator: Any = SimpleNamespace(device=torch.device(device))
        Machine(accelerator, torch.float32).forget_peak()
    assert forgotten == [torch.device("cuda")]


@pytest.mark.parametrize(
    ("native", "emulated", "wanted"), [(True, True, "bf16"), (False, True, "fp16"), (False, False, "fp16")]
)
def test_auto_takes_bf16_where_a_gpu_computes_in_it_itself(
    monkeypatch: pytest.MonkeyPatch, native: bool, emulated: bool, wanted: str
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return native or (including_emulation and emulated)

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert pick_precision("auto", torch.device("cuda")) == wanted
    assert pick_precision("auto", torch.device("cpu")) == "fp32"
    assert pick_precision("bf16", torch.device("cpu")) == "bf16"


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """From now on auto is float16, as on a GPU without bf16."""
    monkeypatch.setattr(
        run_module,
        "start_machine",
        lambda config: Machine(start_machine(config).accelerator, torch.float16),
    )
    return monkeypatch


def test_a_run_goes_on_in_fp16_and_back_with_a_note(small, half: pytest.MonkeyPatch) -> None:
    """Loss scaling, of which the checkpoint knows nothing, begins anew."""
    with half.context() as patch:
        patch.setattr(run_module, "start_machine", start_machine)
        stop_after(small(save_every=1), 2)
    reports = train(small(save_every=1))
    first = next(reports)
    reports.close()
    assert first.step == 3 and "dtype float32 → float16" in first.notes[1]
    checkpoint = latest(results_of(small()).checkpoints)
    assert checkpoint is not None and checkpoint.manifest.scaler_state["scale"] > 1
    half.setattr(run_module, "start_machine", start_machine)
    reports = list(train(small()))
    assert reports[0].step == 4 and reports[-1].adapter is not None


def test_the_vae_encodes_in_float32_whatever_the_precision(small, half: pytest.MonkeyPatch) -> None:
    with prepared(small(), results_of(small())) as run:
        assert run.model.dtype == torch.float16
        assert next(run.model.pipeline.vae.parameters()).dtype == torch.float32


@pytest.fixture
def vae(shapes_folder: Path, tmp_path: Path) -> Path:
    """A VAE in a folder of its own."""
    return Path(shutil.copytree(shapes_folder / "vae", tmp_path / "vae"))


def test_a_vae_is_known_by_its_content(small, vae: Path, tmp_path: Path) -> None:
    stop_after(small(vae=str(vae)), 2)
    moved = shutil.copytree(vae, tmp_path / "elsewhere")
    stop_after(small(vae=str(moved)), 1)
    with pytest.raises(CheckpointError, match=r"vae: was one of sha256 \w+, is the base's own"):
        next(train(small()))
    weights = moved / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"vae: was one of sha256 \w+, is one of sha256"):
        next(train(small(vae=str(moved))))


def test_a_checkpoint_that_knows_the_path_of_its_vae_alone_is_read(small, vae: Path, tmp_path: Path) -> None:
    """As versions before this one wrote them."""
    stop_after(small(vae=str(vae)), 2)
    checkpoint = latest(results_of(small()).checkpoints)
    assert checkpoint is not None
    file = checkpoint.folder / "manifest.json"
    told = json.loads(file.read_text())
    del told["vae"]
    told["config"]["vae"] = str(vae)
    file.write_text(json.dumps(told))
    moved = shutil.copytree(vae, tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"vae: was .*vae', is .*elsewhere'"):
        next(train(small(vae=str(moved))))
    stop_after(small(vae=str(vae)), 1)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_on_a_gpu_no_run_is_said_to_go_on_byte_for_byte(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(identity_module, "environment", lambda machine: {"device": device})
    machine: Any = SimpleNamespace(device=torch.device(device), processes=1)
    manifest = Manifest(
        step=3,
        config={},
        dataset="",
        base="",
        environment={"device": device},
        threads=1,
        processes=1,
        scaler_state={},
    )
    notes = resume_notes(Checkpoint(Path("x"), manifest), machine, 1)
    assert [note for note in notes if "byte for byte" in note] == list(notes[1:])
    assert len(notes) == (1 if device == "cpu" else 2)


def test_the_unet_leaves_the_gpu_while_the_caches_are_filled(small, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def move(parts: Any, device: torch.device) -> None:
        done.extend(f"{type(part).__name__} to {device}" for part in parts)

    monkeypatch.setattr(run_module, "_move", move)
    monkeypatch.setattr(Examples, "prepare", lambda self: done.append("filled"))
    config = small()
    with prepared(config, results_of(config)):
        assert done[0] == "UNet2DConditionModel to cpu" and done[1] == "filled"
        assert done[-1] == "UNet2DConditionModel to cpu"
        assert {"AutoencoderKL to cpu", "CLIPTextModel to cpu"} <= set(done[2:-1])
