"""Training runs: the same bytes whatever interrupts them, and nothing written that should not be."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from difflora.errors import (
    AlreadyTrained,
    CheckpointError,
    ConfigError,
    DataError,
    TrainingError,
)
from difflora.formats import read
from difflora.kinds import LoRA
from difflora.training import run as run_module
from difflora.training.config import TrainConfig
from difflora.training.loop import StepReport, train


def finish(config: TrainConfig) -> bytes:
    """Trains to the end; the bytes of the adapter's file."""
    last = list(train(config))[-1]
    assert last.adapter is not None
    return last.adapter.read_bytes()


def stop_after(config: TrainConfig, steps: int) -> list[StepReport]:
    """Trains some steps, then closes the iterator as an interrupted program does."""
    reports, iterator = [], train(config)
    for _ in range(steps):
        reports.append(next(iterator))
    iterator.close()
    return reports


def test_reports_files_and_record(small) -> None:
    config = small(trigger="sks", save_dtype="float32")
    reports = list(train(config))
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert [report.epoch for report in reports] == [0, 0, 1, 1, 2, 2]
    assert [report.checkpoint is not None for report in reports] == [False, True, False, True, False, False]
    assert all(0 < report.loss < 10 and report.images_per_second > 0 for report in reports)
    adapter = read(config.output / "small.safetensors")
    assert (adapter.meta.name, adapter.meta.family, adapter.meta.trigger) == ("small", "sd1", "sks")
    assert adapter.meta.training["ss_steps"] == "6"
    assert any(
        float(kind.up.abs().max()) > 0 for (kind,) in adapter.modules.values() if isinstance(kind, LoRA)
    )
    record = json.loads((config.output / "small.training.json").read_text())
    assert record["steps"] == 6 and record["config"]["seed"] == 7 and record["data"]["images"] == 4
    assert not (config.output / "checkpoints" / "small").exists()


def test_the_adapter_file_holds_no_path_time_or_machine(small, tmp_path: Path) -> None:
    text = finish(small()).decode("latin-1")
    assert str(tmp_path) not in text and "/tmp" not in text and "sample_data" not in text
    assert "started_at" not in text and "session_id" not in text


def test_the_same_run_gives_the_same_bytes_and_another_seed_does_not(small, tmp_path: Path) -> None:
    first = finish(small())
    assert finish(small(output=tmp_path / "again")) == first
    assert finish(small(output=tmp_path / "other", seed=8)) != first


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulation": 2, "flip": True, "shuffle_tags": True, "caption_dropout": 0.3, "schedule": "linear"},
        {"train_text_encoder": True, "precision": "bf16", "min_snr_gamma": 5.0, "noise_offset": 0.1},
        {"cache_latents": "disk", "epochs": 3.0, "steps": None, "gradient_checkpointing": True},
        {"trigger": "halftone style", "preservation": 0.5, "train_text_encoder": True},
    ],
)
def test_a_run_interrupted_anywhere_gives_the_same_bytes(small, tmp_path: Path, options: dict) -> None:
    wanted = finish(small(output=tmp_path / "whole", **options))
    config = small(**options)
    for steps in (1, 2):
        stop_after(config, steps)  # after steps 1 and 3: not where a checkpoint was due
    resumed = list(train(config))
    assert resumed[0].step == 4 and "continued from step 3" in resumed[0].notes[0]
    assert resumed[-1].adapter is not None and resumed[-1].adapter.read_bytes() == wanted


def test_a_finished_run_is_left_alone(small) -> None:
    config = small()
    before = finish(config)
    modified = (config.output / "small.safetensors").stat().st_mtime_ns
    with pytest.raises(AlreadyTrained, match="--overwrite"):
        next(train(config))
    assert (config.output / "small.safetensors").stat().st_mtime_ns == modified
    assert finish(small(overwrite=True)) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank": 3}, "rank: was 2, is 3"),
        ({"learning_rate": 2e-2}, "learning_rate: was 0.01, is 0.02"),
        ({"batch_size": 1}, "global_batch_size: was 2, is 1"),
        ({"seed": 8, "steps": 9}, "seed: was 7, is 8"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(small, changes: dict, words: str) -> None:
    stop_after(small(), 2)
    with pytest.raises(CheckpointError, match=words):
        next(train(small(**changes)))
    assert len(list(train(small()))) == 4


def test_a_changed_image_is_noticed(small, four_images: Path, tmp_path: Path) -> None:
    data = tmp_path / "mine"
    shutil.copytree(four_images, data)
    stop_after(small(data=data), 2)
    next(iter(data.glob("*.txt"))).write_text("something else")
    with pytest.raises(CheckpointError, match="an image, a caption"):
        next(train(small(data=data)))


def test_what_does_not_change_learning_may_change(small, tmp_path: Path) -> None:
    wanted = finish(small(output=tmp_path / "whole"))
    stop_after(small(), 2)
    assert finish(small(save_every=1, keep_checkpoints=1, cache_latents="disk")) == wanted


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no manifest"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(small, tmp_path: Path, damage: str) -> None:
    wanted = finish(small(output=tmp_path / "whole"))
    stop_after(small(), 4)
    newest = config_checkpoints(small())[-1]
    file = newest / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[:-10])
    elif damage == "flipped":
        content[-5] ^= 1
        file.write_bytes(content)
    else:
        (newest / "manifest.json").unlink()
    resumed = list(train(small()))
    assert resumed[0].step == 3
    assert (tmp_path / "out" / "small.safetensors").read_bytes() == wanted


def config_checkpoints(config: TrainConfig) -> list[Path]:
    return sorted((config.output / "checkpoints" / config.name).glob("step-*"))


def test_the_newest_checkpoint_survives_a_damaged_one_of_a_later_step(small) -> None:
    stop_after(small(), 4)
    (config_checkpoints(small())[-1] / "optimizer.safetensors").write_bytes(b"")
    stop_after(small(save_every=1, keep_checkpoints=1), 1)
    assert [folder.name for folder in config_checkpoints(small())] == ["step-00000003"]
    assert len(list(train(small()))) == 3


def test_long_captions_in_any_order(small, four_images: Path, tmp_path: Path) -> None:
    data = tmp_path / "tags"
    shutil.copytree(four_images, data)
    for number, file in enumerate(sorted(data.glob("*.txt"))):
        file.write_text(
            ", ".join(
                f"a red circle {'on a blue background ' * (tag % 3)}{tag}" for tag in range(4 + 3 * number)
            )
        )
    assert len(list(train(small(data=data, shuffle_tags=True, steps=12)))) == 12


def test_an_interrupted_overwriting_run_continues_without_the_flag(small) -> None:
    wanted = finish(small())
    stop_after(small(overwrite=True), 3)
    assert (small().output / "small.safetensors.replaced").read_bytes() == wanted
    resumed = list(train(small()))
    assert resumed[0].step == 4 and resumed[-1].adapter is not None
    assert resumed[-1].adapter.read_bytes() == wanted
    assert not list(small().output.glob("*.replaced"))


def test_when_every_checkpoint_is_damaged_nothing_is_overwritten(small) -> None:
    stop_after(small(), 4)
    for folder in config_checkpoints(small()):
        (folder / "adapter.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints is whole"):
        next(train(small()))
    assert len(config_checkpoints(small())) == 2
    assert len(list(train(small(overwrite=True)))) == 6


def test_only_the_newest_checkpoints_are_kept(small) -> None:
    stop_after(small(save_every=1, keep_checkpoints=2), 5)
    assert [folder.name for folder in config_checkpoints(small())] == ["step-00000004", "step-00000005"]


def test_a_checkpoint_is_an_adapter_file(small) -> None:
    stop_after(small(), 2)
    adapter = read(config_checkpoints(small())[-1] / "adapter.safetensors")
    assert adapter.modules and all(
        kind.tensors()["up"].dtype == torch.float32 for (kind,) in adapter.modules.values()
    )


def test_problems_of_the_folder_are_raised_before_the_base_is_loaded(
    small, tmp_path: Path, monkeypatch
) -> None:
    def refuse(*args, **kwargs):
        raise AssertionError("the base was loaded")

    monkeypatch.setattr(run_module, "load", refuse)
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "broken.png").write_bytes(b"not an image")
    (bad / "empty.jpg").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        next(train(small(data=bad, caption="a shape")))
    assert "broken.png" in str(caught.value) and "empty.jpg" in str(caught.value)
    with pytest.raises(DataError):
        next(train(small(data=tmp_path / "nowhere")))


def test_a_loss_that_is_not_finite_stops_with_step_and_cause_and_reaches_no_file(small, monkeypatch) -> None:
    load = run_module.load

    def damaged(*args, **kwargs):
        model = load(*args, **kwargs)
        with torch.no_grad():
            model.pipeline.unet.conv_out.weight[0, 0] = float("nan")
        return model

    monkeypatch.setattr(run_module, "load", damaged)
    with pytest.raises(TrainingError, match=r"step 1 of 6.*nan.*not finite: its file.*no checkpoint yet"):
        list(train(small()))
    assert not list(small().output.rglob("*.safetensors"))


def test_diverging_factors_are_named(small) -> None:
    config = small(learning_rate=1.0, max_grad_norm=0.0, weight_decay=0.0, steps=6, save_every=1, alpha=1e30)
    with pytest.raises(TrainingError, match=r"step \d of 6: loss or gradient is (nan|inf)"):
        list(train(config))
    for file in config.output.rglob("adapter.safetensors"):
        assert read(file)  # reading refuses values that are not finite


def test_an_accumulated_step_is_the_mean_of_its_batches(small, tmp_path: Path) -> None:
    options = {"learning_rate": 1e-12, "save_dtype": "float32"}
    single = [report.loss for report in train(small(steps=4, **options))]
    config = small(steps=2, accumulation=2, output=tmp_path / "accumulated", **options)
    double = [report.loss for report in train(config)]
    assert double == pytest.approx([sum(single[:2]) / 2, sum(single[2:]) / 2], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "words"), [({"device": "cuda:9"}, "cuda:9"), ({"precision": "fp16"}, "needs a GPU")]
)
def test_a_device_or_precision_that_is_not_there_is_refused(small, options: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        next(train(small(**options)))


def test_captions_longer_than_the_encoder_reads_at_once(small, four_images: Path, tmp_path: Path) -> None:
    data = tmp_path / "long"
    shutil.copytree(four_images, data)
    next(iter(data.glob("*.txt"))).write_text("a red circle on a blue background, " * 12)
    assert finish(small(data=data)) != finish(small(output=tmp_path / "short"))


def test_previews_do_not_change_the_adapter(small, tmp_path: Path) -> None:
    wanted = finish(small())
    config = small(output=tmp_path / "with", preview_every=3, preview_count=1, preview_steps=2)
    reports = list(train(config))
    assert [len(report.previews) for report in reports] == [0, 0, 1, 0, 0, 1]
    assert all(file.exists() for report in reports for file in report.previews)
    assert (tmp_path / "with" / "small.safetensors").read_bytes() == wanted


def test_a_tensorboard_log_is_written(small) -> None:
    config = small(tensorboard=True, steps=2)
    list(train(config))
    assert list((config.output / "logs" / "small").rglob("events.*"))


def test_training_learns(small, tmp_path: Path) -> None:
    """The loss on the same batches falls: forty steps on one image."""
    config = small(steps=40, batch_size=4, targets="attn", rank=8, learning_rate=3e-3, save_every=100)
    losses = [report.loss for report in train(config)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
