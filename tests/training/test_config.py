"""The training configuration: presets, refusals, and that every option is documented."""

from pathlib import Path

import pytest

from difflora.errors import ConfigError
from difflora.training.config import TrainConfig, configure
from difflora.training.presets import PRESETS, preset_values

VARIANTS = ("sd15", "sd2", "sdxl", "shapes")


def given(folder: Path, **changes) -> dict:
    return {"base_model": str(folder), "data": "images", "output": "out", "name": "style"} | changes


def test_every_option_is_documented() -> None:
    undocumented = [name for name, field in TrainConfig.model_fields.items() if not field.description]
    assert not undocumented


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_valid_configuration_for_every_base(preset: str, variant: str) -> None:
    values = preset_values(preset, variant)
    config = TrainConfig(base_model="base", data=Path("images"), output=Path("out"), name="x", **values)
    assert config.steps and config.resolution == {"sdxl": 1024, "shapes": 128}.get(variant, 512)


def test_given_options_override_the_preset(shapes_folder: Path) -> None:
    preset = configure(given(shapes_folder, preset="style"))
    row = preset_values("style", "shapes")
    assert (preset.rank, preset.steps, preset.resolution) == (row["rank"], row["steps"], 128)
    mine = configure(given(shapes_folder, preset="style", rank=4, steps=9))
    assert (mine.rank, mine.steps, mine.learning_rate) == (4, 9, preset.learning_rate)
    epochs = configure(given(shapes_folder, preset="style", epochs=3))
    assert (epochs.steps, epochs.epochs) == (None, 3)


def test_all_wrong_fields_are_named_at_once(shapes_folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        configure(given(shapes_folder, steps=10, rank=0, learning_rte=1e-4, schedule="cosin", name="a/b"))
    text = str(caught.value)
    for part in ("rank", "learning_rte", "schedule", "'cosin'", "name", "'a/b'"):
        assert part in text


def test_what_is_preserved_is_told_by_a_trigger(shapes_folder: Path) -> None:
    with pytest.raises(ConfigError, match="preservation needs a trigger"):
        configure(given(shapes_folder, preset="style", preservation=0.2))
    with pytest.raises(ConfigError, match="preservation_class has no effect"):
        configure(given(shapes_folder, preset="style", trigger="ohwx", preservation_class="dog"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "either steps or epochs"),
        ({"steps": 1, "epochs": 1}, "either steps or epochs"),
        ({"steps": 1, "train_unet": False}, "nothing would be trained"),
        ({"preset": "styl"}, "style, subject"),
        ({"preset": "style", "base_model": None}, "base"),
    ],
)
def test_contradictions_are_refused(shapes_folder: Path, changes: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        configure({key: value for key, value in given(shapes_folder, **changes).items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"betas": (1.0, 0.9)}, "betas.0: .*less than 1"),
        ({"betas": (0.9, -0.1)}, "betas.1: .*greater than or equal to 0"),
        ({"steps": None, "epochs": float("inf")}, "epochs: .*finite"),
        ({"alpha": float("inf")}, "alpha: .*finite"),
        ({"min_snr_gamma": float("inf")}, "min_snr_gamma: .*finite"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm: .*finite"),
        ({"resolution": 200, "bucket_step": 64}, "resolution 200 is no multiple of bucket_step 64"),
        ({"resolution": 504}, "resolution 504 is no multiple of bucket_step 64"),
        ({"resolution": 512, "max_bucket_edge": 256}, "bucket edges must enclose the resolution"),
        ({"preview_prompts": ["a hat", "a [red:blue:5] hat"]}, r"preview 2, 'a \[red.*at character 3"),
        ({"preview_prompts": ["a <lora:neon:1>"]}, "preview 1, .*adapters are named in the prompt only"),
        ({"preview_prompts": ["a \x9b hat"]}, r"preview 1, .*U\+009B"),
        ({"preview_seed": 2**32}, "preview_seed: .*less than 4294967296"),
    ],
)
def test_what_no_training_can_use_is_refused(shapes_folder: Path, changes: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        configure(given(shapes_folder, **{"steps": 1, **changes}))


def test_sizes_without_buckets_need_no_step(shapes_folder: Path) -> None:
    assert configure(given(shapes_folder, steps=1, resolution=504, buckets=False)).resolution == 504


def test_the_home_folder_is_meant_by_a_tilde(shapes_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, "/home/ann")
    config = configure(given(shapes_folder, steps=1, data="~/cats", output="~/out"))
    assert (config.data, config.output) == (Path("/home/ann/cats"), Path("/home/ann/out"))


def test_a_configuration_is_frozen(shapes_folder: Path) -> None:
    config = configure(given(shapes_folder, preset="subject"))
    with pytest.raises(ValueError, match="frozen"):
        config.rank = 3
