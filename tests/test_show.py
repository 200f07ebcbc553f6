"""`difflora show` of adapters with words, of folders, and of what may hold anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from difflora import Adapter, AdapterMeta, write
from difflora.kinds import LoRA
from difflora.recipe import Recipe, RecipeAdapter, Request, png_text
from tests.commandline import Cli

SHAPES = str(Path(__file__).parents[1] / "sample_data" / "shapes-sd")
PATH = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
FILE = "pytorch_lora_weights.safetensors"


def adapter(*, scale: float = 1.0, tokens: dict[str, dict[str, torch.Tensor]] | None = None) -> Adapter:
    kind = LoRA(torch.randn(2, 64), torch.randn(64, 2), scale)
    return Adapter({PATH: (kind,)}, AdapterMeta(name="n", family="sd1"), tokens or {})


def test_words_fit_a_base_or_not(cli: Cli, tmp_path: Path) -> None:
    width = json.loads((Path(SHAPES) / "text_encoder" / "config.json").read_text())["hidden_size"]
    for name, size, code in (("good", width, 0), ("bad", width + 1, 1)):
        words = {"zxqv": {"text_encoder": torch.randn(2, size)}}
        write(adapter(tokens=words), tmp_path / f"{name}.safetensors")
        said = cli("show", tmp_path / f"{name}.safetensors", "--base-model", SHAPES)
        assert said.code == code and "AttributeError" not in said.err, said
        assert "words       zxqv" in said.out


def test_a_diffusers_folder_is_an_adapter_everywhere(cli: Cli, tmp_path: Path) -> None:
    folder, out = tmp_path / "style", tmp_path / "out.safetensors"
    folder.mkdir()
    write(adapter(scale=0.5), folder / FILE, format="diffusers")
    shown = cli("show", folder)
    assert shown.code == 0 and "diffusers" in shown.out, shown
    for words in (
        ("merge", f"{folder}:0.5", "--output", out),
        ("compare", folder, out),
        ("resize", folder, "--rank", "1", "--output", tmp_path / "small.safetensors"),
        ("bake", SHAPES, folder, "--output", tmp_path / "baked"),
    ):
        said = cli(*words)
        assert said.code == 0, said
    gone = cli("merge", tmp_path / "gone", "--output", tmp_path / "x.safetensors")
    assert gone.code == 1 and "there is no adapter file or folder" in gone.err


def test_the_scale_of_metadata_is_part_of_what_it_is_known_by(cli: Cli, tmp_path: Path) -> None:
    for name, scale in (("half", 0.5), ("whole", 1.0)):
        write(adapter(scale=scale), tmp_path / f"{name}.safetensors", format="diffusers")
        document = json.loads(cli("show", tmp_path / f"{name}.safetensors", "--json").out)
        said = cli("show", tmp_path / f"{name}.safetensors").out
        assert (f"known by    {document['data_hash']}" in said) == (name == "half")
        assert f"(AutoV3 {document['autov3']})" in said


def test_metadata_cannot_command_the_terminal(cli: Cli, tmp_path: Path) -> None:
    tensors = {f"{PATH}.lora_A.weight": torch.ones(2, 64), f"{PATH}.lora_B.weight": torch.ones(64, 2)}
    note = "red\x1b[31m\x9b2J\rover\nnext\tline"
    save_file(tensors, tmp_path / "a.safetensors", metadata={"note": note})
    said = cli("show", tmp_path / "a.safetensors", "--metadata")
    assert said.code == 0 and "\x1b" not in said.out and "\x9b" not in said.out and "\r" not in said.out
    assert "over\nnext" in said.out and "line" in said.out


def picture(path: Path, **texts: str) -> Path:
    found = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        found.add_itxt(key, value)
    Image.new("RGB", (8, 8)).save(path, pnginfo=found)
    return path


def test_texts_of_pictures_cannot_command_the_terminal(cli: Cli, tmp_path: Path) -> None:
    text = "a cat\nSteps: 3, Size: 64x64, Odd: \x1b]0;title\x07\x9b31mred"
    path = picture(tmp_path / "a.png", parameters=text)
    said = cli("show", path)
    assert said.code == 0 and "a cat" in said.out and "red" in said.out
    assert not {"\x1b", "\x07", "\x9b"} & set(said.out), said.out


@pytest.mark.parametrize(("before", "after", "reason"), [
    ('"version":1', '"version":2', "has version 2; this difflora reads version 1"),
    ("{", "", "is not JSON"),
])  # fmt: skip
def test_a_recipe_that_cannot_be_read_is_not_passed_over(
    cli: Cli, tmp_path: Path, before: str, after: str, reason: str
) -> None:
    recipe = Recipe(request=Request(prompt="a cat"), adapters=(RecipeAdapter(name="n", data_hash="a" * 64),))
    texts = png_text(recipe)
    broken = {**texts, "difflora": texts["difflora"].replace(before, after, 1)}
    path = picture(tmp_path / "a.png", **broken)
    said = cli("show", path)
    note, *rest = said.out.splitlines()
    assert said.code == 0 and reason in note and "a cat" in "\n".join(rest)
    assert reason in json.loads(cli("show", path, "--json").out)["recipe_problem"]
    only = picture(tmp_path / "b.png", parameters=texts["parameters"])
    assert "cannot be read" not in cli("show", only).out
    assert "recipe_problem" not in json.loads(cli("show", only, "--json").out)
