"""What a PEFT configuration says counts for the tensors that it is about, and it is about some."""

import json
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from difflora.errors import AdapterFileError
from difflora.families import family
from difflora.formats import inspect, read
from difflora.formats.container import write_tensors
from difflora.formats.patterns import MAX_EXPRESSIONS
from difflora.formats.peft_config import METADATA_KEY
from difflora.kinds import LoRA

INNER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT = "text_model.encoder.layers.0.mlp.fc1"
SECONDS = 1.0


def pair(module: str) -> dict[str, Tensor]:
    return {f"{module}.lora_A.weight": torch.ones(4, 8), f"{module}.lora_B.weight": torch.ones(8, 4)}


def in_metadata(path: Path, tensors: dict[str, Tensor], config: dict[str, object]) -> Path:
    """A diffusers file."""
    write_tensors(path / "a.safetensors", tensors, {METADATA_KEY: json.dumps(config)})
    return path / "a.safetensors"


def in_a_folder(path: Path, config: dict[str, object], *, inner: str = INNER) -> Path:
    """A PEFT folder."""
    path.mkdir(exist_ok=True)
    write_tensors(path / "adapter_model.safetensors", pair(f"base_model.model.{inner}"))
    (path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def scales(path: Path) -> dict[str, float]:
    found = {}
    for name, (kind,) in read(path).modules.items():
        assert isinstance(kind, LoRA)
        found[name.partition(".")[0]] = kind.scale
    return found


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"target_modules": ["to_k", "to_v"]},
            "target_modules is for to_k and 1 more, which is none of the 1",
        ),
        ({"rank_pattern": {"^to_q": 2}}, r"rank_pattern is for \^to_q, which is none of the 1 modules"),
        ({"alpha_pattern": {"unet.mid_block": 2, "x.*": 1}}, f"alpha_pattern is for .*{INNER}"),
        ({"alpha_pattern": {"to_q": 1}, "rank_pattern": {"to_k": 2}}, "rank_pattern is for to_k"),
    ],
)
def test_settings_for_modules_that_are_not_there_are_refused(
    tmp_path: Path, settings: dict[str, object], expected: str
) -> None:
    folder = in_a_folder(tmp_path / "unet", {"r": 4, "lora_alpha": 2, **settings})
    named = {f"unet.{key}": value for key, value in settings.items()}
    file = in_metadata(tmp_path, pair(f"unet.{INNER}"), {"unet.lora_alpha": 2, **named})
    for path in (folder, file):
        with pytest.raises(AdapterFileError, match=f"{path}: .*unet.{expected}"):
            read(path)
        assert "it belongs to other tensors" in inspect(path).problem


@pytest.mark.parametrize(
    ("module", "config", "there"),
    [
        (f"unet.{INNER}", {"text_encoder.r": 4, "text_encoder.lora_alpha": 2}, "text_encoder, .* of unet"),
        (f"unet.{INNER}", {"r": 4, "lora_alpha": 2}, "modules of no component, .* of unet"),
        (INNER, {"unet.r": 4, "unet.lora_alpha": 2}, "unet, .* of no component"),
        (f"unet.{INNER}", {"unet.r": 4, "transformer.use_rslora": True}, "transformer, .* of unet"),
    ],
)
def test_settings_for_a_component_that_no_tensor_names_are_refused(
    tmp_path: Path, module: str, config: dict[str, object], there: str
) -> None:
    path = in_metadata(tmp_path, pair(module), config)
    with pytest.raises(AdapterFileError, match=f"{path}: .*it has settings for {there}"):
        read(path)
    assert "it has settings for" in inspect(path).problem


def test_a_folder_named_after_no_component_is_refused(tmp_path: Path) -> None:
    in_a_folder(tmp_path / "checkpoint-500", {"r": 4, "lora_alpha": 2})
    with pytest.raises(AdapterFileError, match="it has settings for checkpoint-500"):
        read(tmp_path)
    assert scales(tmp_path / "checkpoint-500") == {"unet": 0.5}


def test_settings_count_where_some_are_for_other_modules(tmp_path: Path) -> None:
    """PEFT too goes on where one of several patterns, or of several targets, matches nothing."""
    settings = {"alpha_pattern": {"to_k": 8, "to_q": 1}, "target_modules": ["to_q", "to_k"]}
    assert scales(in_a_folder(tmp_path / "a", {"lora_alpha": 2, **settings})) == {"unet": 0.25}


@pytest.mark.parametrize("targets", ["all-linear", ".*(?<!x)to_[a-z]{1}", [], None, [1, {"a": 2}], ["a b"]])
def test_targets_that_are_no_names_are_let_through(tmp_path: Path, targets: object) -> None:
    assert scales(in_a_folder(tmp_path / "a", {"lora_alpha": 2, "target_modules": targets})) == {"unet": 0.5}


def test_keys_that_are_no_settings_are_let_through(tmp_path: Path) -> None:
    config = {"unet.lora_alpha": 2, "written_by": "someone", "text_encoder.note": "none"}
    assert scales(in_metadata(tmp_path, pair(f"unet.{INNER}"), config)) == {"unet": 0.5}


def test_a_component_without_settings_acts_fully(tmp_path: Path) -> None:
    """As in diffusers, which gives each component its own configuration or none."""
    tensors = pair(f"unet.{INNER}") | pair(f"text_encoder.{TEXT}")
    path = in_metadata(tmp_path, tensors, {"unet.lora_alpha": 2})
    assert scales(path) == {"unet": 0.5, "text_encoder": 1.0}


@pytest.mark.parametrize("name", [TEXT, TEXT.removeprefix("text_model.")])
def test_text_modules_are_known_with_their_level_and_without(tmp_path: Path, name: str) -> None:
    settings = {"alpha_pattern": {f"^{name}": 1}, "target_modules": [name]}
    assert scales(in_a_folder(tmp_path / "a", {"lora_alpha": 2, **settings}, inner=TEXT)) == {
        "text_encoder": 0.25
    }


HOSTILE: dict[str, dict[str, object]] = {
    "wildcards": {f"unet.{table}": {f"{'.*[a-z0-9_.]' * 14}{'z' * n}Q": 1 for n in range(MAX_EXPRESSIONS)}
                  for table in ("alpha_pattern", "rank_pattern")},
    "alternatives": {"unet.alpha_pattern": {f"{'(.|.)' * 35}{'z' * n}Q": 1 for n in range(MAX_EXPRESSIONS)}},
    "as_many_as_there_may_be": {"unet.alpha_pattern": {f"{'.*[^q]' * 31}{'z' * n}Q": 1 for n in range(4)}},
    "a_long_name": {"unet.alpha_pattern": {"a" * (4 << 20): 1}},
    "a_long_expression": {"unet.alpha_pattern": {".*" * (2 << 20): 1}},
    "many_names": {"unet.alpha_pattern": {f"a.{n}": 1 for n in range(200_000)}},
    "many_components": {f"unet{n}.r": 1 for n in range(200_000)},
    "many_targets": {"unet.target_modules": [f"a.{n}" for n in range(200_000)]},
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_no_configuration_takes_long_to_refuse(tmp_path: Path, name: str) -> None:
    """On every module of the largest UNet."""
    inner = sorted(path for path in family("sdxl").paths if path.startswith("unet."))
    tensors = {f"{path}.lora_{x}.weight": torch.ones(1, 1) for path in inner for x in "AB"}
    path = in_metadata(tmp_path, tensors, {"unet.lora_alpha": 2, **HOSTILE[name]})
    took = []
    for _ in range(3):  # on a busy machine the same work takes longer at times
        start = time.process_time()
        with pytest.raises(AdapterFileError, match="what it says of itself cannot be used"):
            read(path)
        took.append(time.process_time() - start)
    assert min(took) < SECONDS
