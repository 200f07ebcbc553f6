"""The verbs of adapter arithmetic as a user meets them: files in, files out, a table or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

import difflora.cli
from difflora import Adapter, AdapterMeta, Model, Stack, fits, load, read, write
from difflora.kinds import Full, LoRA, Norm
from tests.commandline import Cli

SHAPES = str(Path(__file__).parents[1] / "sample_data" / "shapes-sd")
PATHS = (
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
)
NORM = "unet.down_blocks.0.resnets.0.norm1"


def random_adapter(model: Model, name: str, *, rank: int, seed: int, paths: Sequence[str] = PATHS) -> Adapter:
    torch.manual_seed(seed)
    modules = {}
    for path in paths:
        out, width = model.shapes()[path]
        modules[path] = (LoRA(torch.randn(rank, width) / 8, torch.randn(out, rank) / 8, 0.5),)
    return Adapter(modules, AdapterMeta(name=name, family="sd1", trigger=f"{name} style"))


@pytest.fixture
def files(shapes_model: Model, tmp_path: Path) -> tuple[Path, Path]:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    write(random_adapter(shapes_model, "one", rank=4, seed=1), one)
    write(random_adapter(shapes_model, "two", rank=6, seed=2), two)
    return one, two


def weights_of(model: Model) -> dict[str, torch.Tensor]:
    return {path: model.module(path).weight.detach().clone() for path in PATHS}  # pyright: ignore


def test_merge_writes_the_exact_sum(
    cli: Cli, files: tuple[Path, Path], shapes_model: Model, tmp_path: Path
) -> None:
    one, two = files
    said = cli("merge", f"{one}:0.7", f"{two}:-0.4:0", "--output", tmp_path / "out" / "both.safetensors")
    assert said.code == 0 and "error" in said.out and "none" in said.out, said
    merged = read(tmp_path / "out" / "both.safetensors")
    wanted = Stack([(read(one), 0.7), (read(two), difflora.Weight(-0.4, 0.0))])
    for path, weight in weights_of(shapes_model).items():
        expected = wanted.delta(path, weight)
        assert torch.allclose(merged.delta(path, weight), expected, atol=1e-6 * float(expected.abs().max()))


def test_merge_to_a_rank_says_what_was_lost(cli: Cli, files: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "cut.safetensors"
    said = cli("merge", *files, "--rank", "3", "--output", target, "--json")
    document = json.loads(said.out)
    assert said.code == 0 and document["report"]["ranks"] == [3]
    assert 0.1 < document["report"]["total_error"] < 1 and not document["report"]["exact"]
    assert document["autov3"] == read(target).data_hash[:12]
    again = cli("merge", *files, "--output", target)
    assert again.code == 1 and "--overwrite" in again.err
    assert cli("merge", *files, "--output", target, "--overwrite", "--block", "MID=0").code == 0
    wrong = cli("merge", *files, "--output", target, "--overwrite", "--block", "IN77=0")
    assert wrong.code == 1 and "IN77" in wrong.err and "MID" in wrong.err


def test_resize_needs_one_measure(cli: Cli, files: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "small.safetensors"
    said = cli("resize", files[1], "--output", target)
    assert said.code == 1 and "rank, energy and error" in said.err and not target.exists()
    said = cli("resize", files[1], "--rank", "2", "--output", target, "--json")
    assert json.loads(said.out)["report"]["ranks"] == [2]
    assert all(kind.rank == 2 for (kind,) in read(target).modules.values() if isinstance(kind, LoRA))


def test_bake_and_extract_are_inverse(
    cli: Cli, files: tuple[Path, Path], shapes_model: Model, tmp_path: Path
) -> None:
    said = cli("bake", SHAPES, f"{files[0]}:2", "--output", tmp_path / "baked", "--json")
    assert said.code == 0 and json.loads(said.out)["report"]["modules"] == 3, said
    said = cli(
        "extract",
        SHAPES,
        tmp_path / "baked",
        "--rank",
        "4",
        "--output",
        tmp_path / "found.safetensors",
        "--dtype",
        "float32",
    )
    assert said.code == 0, said
    found, wanted = read(tmp_path / "found.safetensors"), read(files[0])
    assert set(found.modules) == set(PATHS)
    for path, weight in weights_of(shapes_model).items():
        expected = 2 * wanted.delta(path, weight)
        assert (found.delta(path, weight) - expected).norm() < 0.02 * expected.norm(), path  # a base in fp16
    assert fits(found, load(str(tmp_path / "baked"), device="cpu", dtype="float32")).ok


def test_two_bases_that_are_alike_give_no_adapter(cli: Cli, tmp_path: Path) -> None:
    target = tmp_path / "nothing.safetensors"
    said = cli("extract", SHAPES, SHAPES, "--rank", "4", "--output", target)
    assert said.code == 1 and not target.exists()
    assert "hold the same numbers" in said.err and "the one after it second" in " ".join(said.err.split())


def test_adapters_of_two_families_are_not_compared(
    cli: Cli, files: tuple[Path, Path], tmp_path: Path
) -> None:
    lora = LoRA(torch.ones(2, 8), torch.ones(8, 2), 1.0)
    other = Adapter({"transformer.x_embedder": (lora,)}, AdapterMeta("neon", "flux"))
    write(other, tmp_path / "neon.safetensors")
    said = cli("compare", files[0], tmp_path / "neon.safetensors")
    words = " ".join(said.err.split())
    assert said.code == 1 and "'neon' is for flux and 'one' is for sd1" in words
    assert "Give adapters of one family" in words


def test_compare_says_how_two_relate_and_draws_where_they_clash(
    cli: Cli, files: tuple[Path, Path], tmp_path: Path
) -> None:
    one, two = files
    said = cli("compare", f"{one}:1", f"{one}:-0.5", two, "--json")
    assert said.code == 0 and json.loads(said.out)["pair"] is None
    said = cli("compare", one, two, "--json", "--heat", tmp_path / "heat.png")
    document = json.loads(said.out)
    assert abs(document["pair"]["cosine"]) < 0.1 and set(document["pair"]["modules"]) == set(PATHS)
    assert {entry["name"]: entry["survives"] > 0.5 for entry in document["mix"]["adapters"]} == {
        "one": True,
        "two": True,
    }
    with Image.open(tmp_path / "heat.png") as heat:
        assert heat.width > 100
    shown = cli("compare", f"{one}:0.5", two)
    assert shown.code == 0 and "survives" in shown.out and "cosine" in shown.out
    assert cli("compare", one).code == 2


def test_a_picture_that_may_not_be_replaced_is_refused_before_the_work(
    cli: Cli, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heat = tmp_path / "heat.png"
    heat.write_bytes(b"a picture")
    monkeypatch.setattr("difflora.algebra.interference", None)  # to be called is an error
    said = cli("compare", *files, "--heat", heat)
    assert said.code == 1 and "--heat" in said.err and "--overwrite" in said.err
    assert heat.read_bytes() == b"a picture"


def test_what_is_of_no_low_rank_is_said_with_its_size(
    cli: Cli, files: tuple[Path, Path], shapes_model: Model, tmp_path: Path
) -> None:
    whole = Adapter({PATHS[0]: (Full(torch.ones(64, 64)),)}, AdapterMeta(name="whole", family="sd1"))
    write(whole, tmp_path / "whole.safetensors")
    words = ("merge", files[0], tmp_path / "whole.safetensors", "--output", tmp_path / "both.safetensors")
    said = cli(*words)
    assert said.code == 0 and "1 modules, whose ΔW is whole: 0.0 MiB" in " ".join(said.out.split()), said
    said = cli(*words, "--overwrite", "--json")
    assert json.loads(said.out)["report"]["dense"] == {"modules": 1, "bytes": 64 * 64 * 4}


def test_the_modules_that_an_error_is_of_are_said(cli: Cli, files: tuple[Path, Path], tmp_path: Path) -> None:
    norm = Adapter({NORM: (Norm(torch.ones(64)),)}, AdapterMeta(name="norm", family="sd1"))
    write(norm, tmp_path / "norm.safetensors")
    for more, over in (((), "over all modules"), ((tmp_path / "norm.safetensors",), "over 3 of the modules")):
        target = tmp_path / f"{len(more)}.safetensors"
        said = cli("merge", *files, *more, "--rank", "2", "--output", target)
        assert said.code == 0 and over in " ".join(said.out.split()), said


@pytest.mark.parametrize("layout", ["diffusers", "peft", "kohya"])
def test_convert_there_and_back(layout: str, cli: Cli, files: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / ("folder" if layout == "peft" else "other.safetensors")
    source = files[0]
    if layout == "peft":  # a PEFT folder is for one component
        unet = {path: kinds for path, kinds in read(source).modules.items() if path.startswith("unet.")}
        source = tmp_path / "unet.safetensors"
        write(Adapter(unet, AdapterMeta(name="one", family="sd1")), source)
    said = cli("convert", source, "--format", layout, "--output", target, "--json")
    assert said.code == 0 and json.loads(said.out)["kinds"] == ["lora"], said
    back = cli("convert", target, "--output", tmp_path / "back.safetensors")
    assert back.code == 0, back
    assert difflora.same(read(tmp_path / "back.safetensors"), read(source))


def test_convert_unpacks_a_pickle_and_nothing_else_reads_one(
    cli: Cli, files: tuple[Path, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    old = tmp_path / "old.pt"
    torch.save(load_file(files[0]), old)
    refused = cli("show", old)
    assert refused.code == 1
    said = cli("convert", old)  # as the errors of readers say
    assert said.code == 0, said
    assert difflora.same(read(tmp_path / "old.safetensors"), read(files[0]))
    assert cli("convert", files[0]).code == 2


def test_show_profiles_an_adapter(cli: Cli, files: tuple[Path, Path]) -> None:
    said = cli("show", files[1])
    assert said.code == 0 and "‖ΔW‖" in said.out and "MID" in said.out and "effective rank" in said.out


def test_show_as_json(cli: Cli, files: tuple[Path, Path]) -> None:
    document = json.loads(cli("show", files[1], "--json", "--base-model", SHAPES).out)
    assert document["fits"] is True and document["ranks"] == [6] and set(document["modules"]) == set(PATHS)
    assert document["norm"] > 0 and document["data_hash"] == read(files[1]).data_hash
    base = json.loads(cli("show", SHAPES, "--json").out)
    assert base["family"] == "sd1" and base["parameters"]["unet"] > 1e6


def test_a_peft_folder_is_taken_where_files_are(cli: Cli, files: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    assert cli("convert", files[0], "--format", "peft", "--output", folder).code == 0
    shown = cli("show", folder)
    assert shown.code == 0 and "modules     3" in shown.out, shown
    said = cli("merge", f"{folder}:0.5", files[1], "--output", tmp_path / "both.safetensors")
    assert said.code == 0, said
    assert set(read(tmp_path / "both.safetensors").modules) == set(PATHS)


def test_what_rounding_loses_is_said(cli: Cli, files: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "half.safetensors"
    said = cli("convert", files[0], "--dtype", "bfloat16", "--output", target)
    assert said.code == 0 and "lost to rounding" in said.out
    said = cli("merge", *files, "--dtype", "bfloat16", "--output", target, "--overwrite", "--json")
    assert 1e-4 < json.loads(said.out)["rounding"] < 1e-2


def test_what_is_wrong_is_said_before_anything_is_made(
    cli: Cli, files: tuple[Path, Path], tmp_path: Path
) -> None:
    inside = tmp_path / "copy"
    assert cli("bake", SHAPES, files[0], "--output", inside).code == 0
    said = cli("bake", inside, files[0], "--output", inside / "inner")
    assert said.code == 1 and "inside the base" in said.err and not (inside / "inner").exists()
    for block in ("X=nan", "=0", "MID=inf"):
        said = cli("merge", *files, "--block", block, "--output", tmp_path / "x.safetensors")
        assert said.code == 1 and "--block" in said.err
    assert cli("merge", "--output", tmp_path / "x.safetensors").code == 2
    assert cli("bake", SHAPES, "--output", tmp_path / "x").code == 2
    device = tmp_path / "link.safetensors"
    device.symlink_to(files[0])
    said = cli("resize", files[1], "--rank", "2", "--output", device, "--overwrite")
    assert said.code == 1 and "no plain file" in said.err and device.is_symlink()
    said = cli("convert", tmp_path / "gone.safetensors", "--output", tmp_path / "new" / "x.safetensors")
    assert said.code == 1 and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "verb", ["merge", "resize", "extract", "bake", "compare", "convert", "show", "library"]
)
def test_every_verb_has_help_and_names_a_missing_file(verb: str, cli: Cli, tmp_path: Path) -> None:
    said = cli(verb, "--help")
    assert said.code == 0 and "--json" in said.out
    gone = str(tmp_path / "gone.safetensors")
    words = {
        "compare": (gone, gone),
        "bake": (SHAPES, gone, "--output", str(tmp_path / "x")),
        "extract": (gone, gone, "--rank", "2", "--output", str(tmp_path / "x.safetensors")),
        "show": (gone,),
        "library": (gone,),
    }.get(verb, (gone, "--output", str(tmp_path / "x.safetensors")))
    said = cli(verb, *words)
    assert said.code == 1 and "gone.safetensors" in said.err and "Traceback" not in said.err
    assert not (tmp_path / "x.safetensors").exists()
