"""The committed sample folders are what the program draws, and the embedded base can read their captions."""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from transformers import CLIPTextModel, CLIPTokenizer

from train_scripts.make_sample_data import SAMPLE_DATA
from train_scripts.shapes.folder import load_pipeline, publish
from train_scripts.shapes.sample_data import write_sample_data

BASE = SAMPLE_DATA / "shapes-sd"
FOLDERS = ("styles", "subjects", "mixed_sizes")


def digests(root: Path) -> dict[str, str]:
    files = [file for folder in FOLDERS for file in (root / folder).rglob("*.*")]
    return {f.relative_to(root).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_sample_folders_are_reproduced_byte_for_byte(tmp_path: Path) -> None:
    images = write_sample_data(tmp_path, seed=2024)
    assert len(images) == 4 * 24 + 8 + 12
    assert digests(tmp_path) == digests(SAMPLE_DATA)


def test_every_image_has_a_caption_that_fits_the_prompt_length() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(BASE / "tokenizer")
    assert tokenizer.model_max_length == 32
    for folder in FOLDERS:
        for image in (SAMPLE_DATA / folder).rglob("*.png"):
            caption = image.with_suffix(".txt").read_text(encoding="utf-8").strip()
            ids = tokenizer(caption).input_ids
            assert 5 < len(ids) <= 32, caption
            assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ,", ",").strip() == caption


@pytest.mark.parametrize(
    "component, kind",
    [("unet", UNet2DConditionModel), ("vae", AutoencoderKL), ("text_encoder", CLIPTextModel)],
)
def test_the_base_loads_whole(component: str, kind: Any) -> None:
    model, info = kind.from_pretrained(BASE / component, output_loading_info=True)
    assert not any(info.values()), info
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_the_base_is_small_and_readable_by_older_tools() -> None:
    assert sum(file.stat().st_size for file in BASE.rglob("*") if file.is_file()) <= 24 * 2**20
    with safe_open(BASE / "text_encoder" / "model.safetensors", "pt") as text:
        assert all(name.startswith("text_model.") for name in text.keys())  # noqa: SIM118 - not a dict
        assert text.get_tensor("text_model.final_layer_norm.weight").dtype == torch.float16
    vocab = json.loads((BASE / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    assert len(vocab) == 636 and max(vocab.values()) == 635
    merges = (BASE / "tokenizer" / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert merges[0].startswith("#version") and all(len(line.split(" ")) == 2 for line in merges[1:])


def test_no_config_of_the_base_names_a_private_path() -> None:
    for config in BASE.rglob("*.json"):
        text = config.read_text(encoding="utf-8")
        assert "_name_or_path" not in text and '"/' not in text.replace('"/"', "").replace('"/</w>"', ""), (
            config
        )


def test_publishing_a_loaded_base_again_changes_no_byte(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        publish(load_pipeline(BASE), tmp_path)
    written = {f.relative_to(tmp_path): f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    assert written == {f.relative_to(BASE): f.read_bytes() for f in BASE.rglob("*") if f.is_file()}
