"""The base as a diffusers folder that both new and old tools read."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor

PRIVATE_KEYS = ("_name_or_path", "is_local", "local_files_only")
TEXT_LEVEL = "text_model."


def load_pipeline(folder: Path) -> Any:
    """The base in float32 on the CPU, without safety checker and without a progress bar of its own."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, dtype=torch.float32, safety_checker=None, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def publish(pipeline: Any, folder: Path) -> None:
    """Write `pipeline` to `folder` as float16 safetensors; the same weights give the same bytes.

    The text encoder keeps the `text_model.` level in its tensor names and the tokenizer is also written as
    `vocab.json` and `merges.txt`: transformers 4 and every older tool expect both. No config names the
    folder that the weights came from.
    """
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        module.to(torch.float16)
    pipeline.save_pretrained(folder)
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        module.to(torch.float32)
    _restore_text_level(folder / "text_encoder" / "model.safetensors")
    _write_classic_tokenizer(folder / "tokenizer")
    for config in sorted(folder.rglob("*.json")):
        _drop_private_keys(config)


def publish_clip(clip: Any, folder: Path) -> None:
    """Write `clip` to `folder` as float16 safetensors, with the processor of its images."""
    clip.to(torch.float16)
    clip.save_pretrained(folder)
    clip.to(torch.float32)
    edge = clip.config.vision_config.image_size
    CLIPImageProcessor(
        size={"height": edge, "width": edge},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(folder)
    for config in sorted(folder.glob("*.json")):
        _drop_private_keys(config)


def _restore_text_level(file: Path) -> None:
    # transformers 5 drops the level when it saves a CLIPTextModel, and accepts it when it loads one.
    tensors = {
        name if name.startswith(TEXT_LEVEL) else TEXT_LEVEL + name: tensor
        for name, tensor in load_file(file).items()
    }
    save_file(tensors, file, metadata={"format": "pt"})


def _write_classic_tokenizer(folder: Path) -> None:
    bpe = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    vocab = json.dumps(bpe["vocab"], ensure_ascii=False)
    (folder / "vocab.json").write_text(vocab + "\n", encoding="utf-8", newline="\n")
    merges = ["#version: 0.2", *(" ".join(pair) for pair in bpe["merges"])]
    (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8", newline="\n")


def _drop_private_keys(file: Path) -> None:
    config = json.loads(file.read_text(encoding="utf-8"))
    if not any(key in config for key in PRIVATE_KEYS):
        return
    kept = {key: value for key, value in config.items() if key not in PRIVATE_KEYS}
    file.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8", newline="\n")
