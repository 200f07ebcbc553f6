"""Parameters of single files and folders by path, and stacks baked into both."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from difflora import Stack, Weight, bake, extract
from difflora.adapter import Adapter, AdapterMeta
from difflora.algebra.checkpoints import open_checkpoint
from difflora.apply import applied
from difflora.errors import ApplyError, BaseModelError, FitError
from difflora.families.family import canonical_names
from difflora.families.model import Model
from difflora.kinds import Bias, Full, LoRA, Replace
from tests.algebra.adapters import CONV, LINEAR, NORM, TEXT, of_kind, relative
from tests.families import tiny_bases

FUSED = "text_encoder_2.text_model.encoder.layers.0.self_attn."
PROJECTION = "text_encoder_2.text_projection"


def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str) -> tuple[Path, dict[str, Tensor]]:
    """A small single file of that layout, and its parameters in float16 by path and leaf."""
    from difflora.families import family

    assets = tiny_bases.shrink_assets(tmp_path / "assets", monkeypatch)
    components = tiny_bases.random_components(assets / layout)
    member = family("sdxl" if layout == "sdxl" else "sd1")
    tensors = tiny_bases.original_tensors(components, member, open_clip=layout.startswith("sd2"))
    file = tiny_bases.save_half(tensors, tmp_path / "tiny.safetensors")
    found = {}
    for part in member.components:
        state = components[part.name].state_dict()
        names = canonical_names(state, part.name)
        found |= {f"{part.name}.{names[name]}": value.half() for name, value in state.items()}
    return file, found


@pytest.mark.parametrize("layout", ["sd15", "sd2", "sdxl"])
def test_every_parameter_of_a_single_file_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    file, wanted = tiny(tmp_path, monkeypatch, layout)
    checkpoint = open_checkpoint(file)
    shapes = checkpoint.shapes()
    for name, tensor in wanted.items():
        path, leaf = name.rsplit(".", 1)
        got = checkpoint.value(path, leaf)
        assert got is not None and torch.equal(got, tensor), name
        assert leaf != "weight" or shapes[path] == tuple(tensor.shape)
    assert len(checkpoint.by_path) == len(wanted)


def random_stack(shapes: Mapping[str, tuple[int, ...]], paths: list[str]) -> Stack:
    """Two adapters that change those modules, one of them the biases of some as well."""
    source = torch.Generator().manual_seed(0)
    adapters = []
    for number in range(2):
        modules = {}
        for path in paths:
            out, *rest = shapes[path]
            up = torch.randn(out, 3, *[1] * (len(rest) - 1), generator=source)
            modules[path] = (LoRA(torch.randn(3, *rest, generator=source) * 0.1, up * 0.1, 1.0),)
            if number and "q_proj" in path:
                modules[path] += (Bias(torch.randn(out, generator=source) * 0.1),)
        adapters.append(Adapter(modules, AdapterMeta(name=str(number))))
    return Stack([(adapters[0], 0.7), (adapters[1], Weight(unet=-0.4, text=1.2))])


@pytest.mark.parametrize("layout", ["sd2", "sdxl"])
def test_baking_a_single_file_changes_what_the_stack_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    file, before = tiny(tmp_path, monkeypatch, layout)
    old = open_checkpoint(file)
    own = [FUSED + "q_proj", FUSED + "v_proj", PROJECTION] if layout == "sdxl" else [TEXT]
    paths = ["unet.conv_in", "unet.mid_block.resnets.0.conv1", *own]
    stack = random_stack(old.shapes(), paths)
    written, report = bake(file, stack, tmp_path / "baked.safetensors")
    new = open_checkpoint(written)
    for name, tensor in before.items():
        path, leaf = name.rsplit(".", 1)
        wanted = tensor
        if path in paths and leaf == "weight":
            wanted = (tensor.float() + stack.delta(path, tensor)).half()
        elif "q_proj" in path and path in paths:
            bias = stack.entries[1][0].modules[path][1].bias_delta(tensor)
            assert bias is not None
            wanted = (tensor.float() + 1.2 * bias).half()
        got = new.value(path, leaf)
        assert got is not None and torch.equal(got, wanted), name
    rest = {name for name in load_file(file) if name.startswith("first_stage_model.")}
    assert rest and all(torch.equal(load_file(file)[name], load_file(written)[name]) for name in rest)
    assert set(report.norm) == set(report.share) == set(paths)
    assert all(0 < error < 0.1 for error in report.error.values())


def test_hashes_that_became_untrue_are_taken_out_of_the_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = tiny(tmp_path, monkeypatch, "sd15")
    save_file(load_file(file), file, {"modelspec.hash_sha256": "0x1", "modelspec.title": "tiny ✓"})
    stack = random_stack(open_checkpoint(file).shapes(), ["unet.conv_in"])
    written, _ = bake(file, stack, tmp_path / "baked.safetensors")
    with safe_open(written, framework="pt") as content:
        assert content.metadata() == {"modelspec.title": "tiny ✓"}


@torch.no_grad()
def test_a_baked_folder_is_the_stack_merged_bit_for_bit(
    shapes_folder: Path, shapes_model: Model, tmp_path: Path
) -> None:
    names = ("lora", "dora_out", "full_bias", "norm_bias", "oft")
    stack = Stack([(of_kind(shapes_model, name, 1), 0.3) for name in names])
    folder = shutil.copytree(shapes_folder, tmp_path / "base")
    _to_float32(folder)
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"weights without the stack")
    baked, report = bake(folder, stack, tmp_path / "baked")
    new = open_checkpoint(baked)
    with applied(shapes_model, stack, mode="merged"):
        for path in (LINEAR, CONV, TEXT, NORM, "unet.conv_out"):
            for leaf in ("weight", "bias"):
                live = shapes_model.module(path)._parameters.get(leaf)
                got = new.value(path, leaf)
                assert (live is None) == (got is None)
                assert live is None or got is None or torch.equal(live, got), (path, leaf)
    assert list(report.left_out) == ["unet/diffusion_pytorch_model.bin"]
    assert not any(report.error.values()) and all(report.share.values())
    others = [
        file for file in folder.rglob("*") if file.is_file() and file.suffix not in (".safetensors", ".bin")
    ]
    assert others and all(
        file.read_bytes() == (baked / file.relative_to(folder)).read_bytes() for file in others
    )
    assert (baked / "vae" / "diffusion_pytorch_model.safetensors").is_file()


def _to_float32(folder: Path) -> None:
    for part in ("unet", "text_encoder"):
        (file,) = (folder / part).glob("*.safetensors")
        save_file({name: value.float() for name, value in load_file(file).items()}, file)


def test_baking_is_refused_where_it_would_overwrite_or_not_fit(
    shapes_folder: Path, shapes_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = Stack([(of_kind(shapes_model, "lora", 1), 0.3)])
    (tmp_path / "there").mkdir()
    for out in (tmp_path / "there", shapes_folder):
        with pytest.raises(ApplyError, match="there already"):
            bake(shapes_model, stack, out)
    wrong = Adapter({CONV: (LoRA(torch.ones(2, 3, 3, 3), torch.ones(9, 2, 1, 1), 1.0),), "unet.nowhere": ()})
    with pytest.raises(FitError, match="2 of 2"):
        bake(shapes_folder, Stack([(wrong, 1.0)]), tmp_path / "new")
    monkeypatch.setattr("difflora.algebra.baking.os.rename", _no_rename)
    with pytest.raises(OSError, match="disk"):
        bake(shapes_folder, stack, tmp_path / "new")
    assert [file.name for file in tmp_path.iterdir()] == ["there"]


def test_baking_replaces_nothing_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = tiny(tmp_path, monkeypatch, "sd15")
    stack = random_stack(open_checkpoint(file).shapes(), ["unet.conv_in"])
    taken, link = tmp_path / "taken.safetensors", tmp_path / "link.safetensors"
    taken.write_bytes(b"an adapter")
    link.symlink_to(tmp_path / "nowhere.safetensors")
    for out in (taken, link, file):
        with pytest.raises(ApplyError, match="there already"):
            bake(file, stack, out)
    assert taken.read_bytes() == b"an adapter" and link.is_symlink() and not link.exists()


def test_a_bias_where_there_is_none_is_refused(shapes_folder: Path, tmp_path: Path) -> None:
    lora = LoRA(torch.ones(2, 64), torch.ones(64, 2), 1.0)
    for kind in (Bias(torch.ones(64)), replace(lora, bias=torch.ones(64)), Replace(bias=torch.ones(64))):
        with pytest.raises(FitError, match=r"attn1\.to_q: a \w+ changes the bias, but the layer has none"):
            bake(shapes_folder, Stack([(Adapter({LINEAR: (kind,)}), 1.0)]), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def with_variants(folder: Path) -> dict[str, float]:
    """Puts other numbers into other weight files of the UNet; returns what each has at one place of CONV."""
    (main,) = (folder / "unet").glob("*.safetensors")
    tensors = load_file(main)
    for name, number in (("fp16", 2.0), ("non_ema", 3.0)):
        other = {**tensors, "down_blocks.0.resnets.0.conv1.weight": torch.full((64, 64, 3, 3), number).half()}
        save_file(other, main.with_name(f"diffusion_pytorch_model.{name}.safetensors"))
    save_file({"conv_in.weight": torch.ones(8, 9, 3, 3)}, main.with_name("inpainting.safetensors"))
    first = float(tensors["down_blocks.0.resnets.0.conv1.weight"].flatten()[0])
    return {main.name: first, "diffusion_pytorch_model.fp16.safetensors": 2.0} | {
        "diffusion_pytorch_model.non_ema.safetensors": 3.0
    }


def test_of_several_weight_files_the_values_are_those_that_are_loaded(
    shapes_folder: Path, shapes_model: Model, tmp_path: Path
) -> None:
    folder = shutil.copytree(shapes_folder, tmp_path / "base")
    with_variants(folder)
    value = open_checkpoint(folder).value(CONV, "weight")
    assert value is not None and torch.equal(value.float(), shapes_model.module(CONV).weight)
    with pytest.raises(FitError, match="hold the same numbers"):
        extract(shapes_folder, folder, rank=1)


def test_of_several_weight_files_each_is_baked_or_left_out(
    shapes_folder: Path, shapes_model: Model, tmp_path: Path
) -> None:
    folder = shutil.copytree(shapes_folder, tmp_path / "base")
    before = with_variants(folder)
    stack = Stack([(Adapter({CONV: (Full(torch.ones(64, 64, 3, 3)),)}), 0.5)])
    baked, report = bake(folder, stack, tmp_path / "baked")
    assert list(report.left_out) == ["unet/inpainting.safetensors"]
    assert {file.name for file in (baked / "unet").glob("*.safetensors")} == before.keys()
    for name, value in before.items():
        written = load_file(baked / "unet" / name)["down_blocks.0.resnets.0.conv1.weight"]
        assert float(written.flatten()[0]) == pytest.approx(value + 0.5, abs=1e-3)


def test_what_is_hidden_in_a_folder_is_not_copied(shapes_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shapes_folder, tmp_path / "base")
    (folder / ".git" / "lfs").mkdir(parents=True)
    (folder / ".git" / "lfs" / "object").write_bytes(b"weights of long ago")
    (folder / "unet" / ".DS_Store").write_bytes(b"")
    (folder / "vae").rename(tmp_path / "shared")
    (folder / "vae").symlink_to(tmp_path / "shared", target_is_directory=True)
    stack = Stack([(Adapter({CONV: (Full(torch.ones(64, 64, 3, 3)),)}), 0.5)])
    baked, report = bake(folder, stack, tmp_path / "baked")
    assert report.left_out.keys() == {".git", "unet/.DS_Store"}
    names = {path.relative_to(baked).as_posix() for path in baked.rglob("*") if path.is_file()}
    files = (path for path in shapes_folder.rglob("*") if path.is_file())
    assert names == {path.relative_to(shapes_folder).as_posix() for path in files}


def _no_rename(*_paths: Path) -> None:
    raise OSError("disk")


def test_a_folder_without_weights_is_refused(shapes_folder: Path, tmp_path: Path) -> None:
    empty = shutil.copytree(shapes_folder, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(BaseModelError, match=r"no \.safetensors weights"):
        open_checkpoint(empty)


def test_what_was_baked_is_extracted_again(shapes_folder: Path, shapes_model: Model, tmp_path: Path) -> None:
    names = ("lora", "full_bias", "norm_bias")
    stack = Stack([(of_kind(shapes_model, name, 1), 0.3) for name in names])
    folder = shutil.copytree(shapes_folder, tmp_path / "base")
    _to_float32(folder)
    baked, _ = bake(folder, stack, tmp_path / "baked")
    whole, report = extract(shapes_model, baked, error=1e-5, vectors=True)
    assert set(whole.modules) == set(stack.paths())
    for path in stack.paths():
        weight = shapes_model.module(path).weight
        assert relative(whole.delta(path, weight), stack.delta(path, weight)) < 2e-5, path
    assert report.ranks[LINEAR] == 3 and not report.left_out
    assert whole.meta.family == "sd1" and whole.meta.base == shapes_model.facts.name
    small, report = extract(folder, baked, rank=2)
    assert set(report.left_out) == {CONV, NORM, TEXT, "unet.down_blocks.0.attentions.0.proj_in"}
    assert NORM not in small.modules and report.error[NORM] == 1.0
    singular = torch.linalg.svdvals(stack.delta(LINEAR, shapes_model.module(LINEAR).weight).double())
    assert report.error[LINEAR] == pytest.approx(float(singular[2:].norm() / singular.norm()), abs=1e-4)
    assert report.share[LINEAR] == pytest.approx(
        float(singular.norm() / shapes_model.module(LINEAR).weight.norm()), rel=1e-4
    )


def test_bases_that_are_alike_have_no_difference(
    shapes_folder: Path, shapes_model: Model, tmp_path: Path
) -> None:
    with pytest.raises(FitError, match=r"hold the same numbers in all \d+ modules.* before training first"):
        extract(shapes_folder, shapes_model, rank=2)
    folder = shutil.copytree(shapes_folder, tmp_path / "base")
    _to_float32(folder)
    baked, _ = bake(folder, Stack([(of_kind(shapes_model, "bias", 1), 1.0)]), tmp_path / "baked")
    with pytest.raises(
        FitError, match=r"differ in the norms, biases or embeddings of \d+ modules .*--vectors"
    ):
        extract(shapes_model, baked, rank=2)
    assert extract(shapes_model, baked, rank=2, vectors=True)[0].modules


def test_bases_of_other_architectures_have_no_difference(
    shapes_folder: Path, shapes_model: Model, tmp_path: Path
) -> None:
    other = shutil.copytree(shapes_folder, tmp_path / "other")
    file = other / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.weight"] = tensors["conv_in.weight"][:8].contiguous()
    save_file(tensors, file)
    with pytest.raises(FitError, match=r"unet\.conv_in is \(64, 4, 3, 3\) before and \(8, 4, 3, 3\) after"):
        extract(shapes_model, other, rank=2)
