"""PEFT's folders mean what PEFT makes of them, and PEFT makes of ours what we mean."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import UNet2DConditionModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from difflora.adapter import Adapter, AdapterMeta, same
from difflora.errors import AdapterFileError
from difflora.formats import inspect, read, write, writing
from difflora.formats.container import read_tensors
from difflora.formats.folders import UNFINISHED
from difflora.kinds import LoKr, LoRA, Replace
from difflora.library import Library
from tests.kinds.samples import sample

ATTENTION = "unet.mid_block.attentions.0.transformer_blocks.0.attn1"
CONV = "unet.mid_block.resnets.0.conv1"


def unet(fixtures: Path) -> UNet2DConditionModel:
    """A random UNet of the layout of SD 1.5, with small widths; the same for the same seed."""
    torch.manual_seed(3)
    config = UNet2DConditionModel.load_config(fixtures / "base" / "unet_sd1")
    return UNet2DConditionModel.from_config(config)  # pyright: ignore[reportReturnType]


def merged(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every weight and bias of a model that PEFT has put an adapter on, with the adapter in it."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    state = {}
    for name, tensor in model.state_dict().items():
        if "original_module" in name or "lora_" in name:
            continue
        for level in (".base_layer", ".modules_to_save.default", ".modules_to_save.peer"):
            name = name.replace(level, "")
        state[name.removeprefix("base_model.model.")] = tensor
    return state


def assert_same_model(adapter: Adapter, base: nn.Module, peers: dict[str, torch.Tensor]) -> None:
    """The peer's weights are the base's plus what the adapter says, and nothing else is changed."""
    for name, before in base.state_dict().items():
        path = f"unet.{name.rpartition('.')[0]}"
        change = torch.zeros_like(before)
        if path in adapter.modules:
            if name.endswith(".weight"):
                change = adapter.delta(path, before)
            else:
                changes = [kind.bias_delta(before) for kind in adapter.modules[path]]
                change = sum((one for one in changes if one is not None), start=change)
            if name.endswith(".weight"):
                assert change.norm() > 0
        assert (before + change - peers[name]).norm() <= 1e-5 * change.norm() + 3e-7 * before.norm(), name


def test_a_folder_of_peft(fixtures: Path) -> None:
    """rsLoRA of mixed ranks, with one layer replaced."""
    folder = fixtures / "adapters" / "peft_folder"
    adapter = read(folder)
    peers = merged(peft.PeftModel.from_pretrained(unet(fixtures), str(folder)))
    assert_same_model(adapter, unet(fixtures), peers)
    assert inspect(folder).kind_counts == {"lora": 86, "replace": 1}
    assert isinstance(adapter.modules["unet.conv_out"][0], Replace)
    assert adapter.meta.name == "peft_folder"
    assert same(read(folder / "adapter_model.safetensors"), adapter)


def test_dora_as_diffusers_saves_it(fixtures: Path, tmp_path: Path) -> None:
    file = fixtures / "adapters" / "diff_sd15_peft_dora" / "pytorch_lora_weights.safetensors"
    adapter = read(file)
    assert inspect(file).kind_counts == {"dora": 190}
    model = unet(fixtures)
    model.load_lora_adapter(str(file.parent), weight_name=file.name, prefix="unet", adapter_name="peer")
    assert_same_model(adapter, unet(fixtures), merged(model))
    assert same(read(file.parent), adapter), "its folder stands for it"
    only = Adapter({path: kinds for path, kinds in adapter.modules.items() if path.startswith("unet.")})
    write(Adapter(only.modules, adapter.meta), tmp_path / "ours.safetensors", format="diffusers")
    ours = unet(fixtures)
    ours.load_lora_adapter(str(tmp_path), weight_name="ours.safetensors", prefix="unet", adapter_name="peer")
    assert_same_model(only, unet(fixtures), merged(ours))


@pytest.mark.parametrize("name", ["lora", "lora_bias", "dora_out"])
def test_peft_loads_the_folders_that_we_write(fixtures: Path, tmp_path: Path, name: str) -> None:
    base = unet(fixtures)
    shapes = {
        f"unet.{key}": tuple(module.weight.shape)
        for key, module in base.named_modules()
        if hasattr(module, "weight")
    }
    paths = [f"{ATTENTION}.to_q", f"{ATTENTION}.to_out.0", CONV, "unet.mid_block.attentions.0.proj_in"]
    if name == "lora_bias":  # PEFT gives a bias only to layers that have one
        paths = paths[1:]
    modules = {path: (sample(name, shapes[path], seed=n),) for n, path in enumerate(paths)}
    if name == "lora":
        modules["unet.conv_out"] = (sample("replace_bias", shapes["unet.conv_out"]),)
        first = modules[CONV][0]
        assert isinstance(first, LoRA)
        modules[CONV] = (LoRA(first.down[:2], first.up[:, :2], scale=0.7),)
    adapter = Adapter(modules, AdapterMeta("n", "sd1"))
    write(adapter, tmp_path / "ours", format="peft")
    peers = merged(peft.PeftModel.from_pretrained(unet(fixtures), str(tmp_path / "ours")))
    assert_same_model(adapter, base, peers)


def test_several_components_are_a_folder_each(tmp_path: Path) -> None:
    text = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    adapter = Adapter(
        {f"{ATTENTION}.to_q": (sample("lora", (8, 6)),), text: (sample("lora", (12, 6)),)},
        AdapterMeta("n", "sd1"),
    )
    written = write(adapter, tmp_path / "a", format="peft")
    assert written.autov2 == "", "no one file's hash is that of all"
    assert sorted(path.relative_to(tmp_path / "a").as_posix() for path in (tmp_path / "a").rglob("*.*")) == [
        "text_encoder/adapter_config.json",
        "text_encoder/adapter_model.safetensors",
        "unet/adapter_config.json",
        "unet/adapter_model.safetensors",
    ]
    assert same(read(tmp_path / "a"), adapter)
    assert read(tmp_path / "a").meta.file_hash == written.data_hash
    assert read(tmp_path / "a" / "unet").modules.keys() == {f"{ATTENTION}.to_q"}
    assert read(tmp_path / "a" / "text_encoder").modules.keys() == {text}


def test_parts_of_another_adapter_are_never_mixed_in(tmp_path: Path) -> None:
    text = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    of_unet, of_text = ((f"{ATTENTION}.to_q", (sample("lora", (8, 6)),)), (text, (sample("lora", (12, 6)),)))
    other = "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"
    both = Adapter(dict([of_unet, of_text]), AdapterMeta("n", "sdxl"))
    write(both, tmp_path / "a", format="peft")
    write(both, tmp_path / "a", format="peft")
    changed = Adapter(dict([of_unet, (other, of_text[1])]), AdapterMeta("n", "sdxl"))
    with pytest.raises(
        AdapterFileError, match=r"(?s)another adapter are there.*text_encoder/adapter_config\.json"
    ):
        write(changed, tmp_path / "a", format="peft")
    assert same(read(tmp_path / "a"), both)
    write(Adapter(dict([of_unet]), AdapterMeta("n", "sdxl")), tmp_path / "b", format="peft")
    with pytest.raises(AdapterFileError, match="another adapter are there"):
        write(both, tmp_path / "b", format="peft")


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        one.relative_to(folder).as_posix(): one.read_bytes() for one in folder.rglob("*") if one.is_file()
    }


@pytest.mark.parametrize("failing", ["write_tensors", "atomic_write"])
def test_a_folder_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """The disk is full at the second component, or at its configuration."""
    text = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    first, second = (
        Adapter(
            {
                f"{ATTENTION}.to_q": (sample("lora", (8, 6), seed=n),),
                text: (sample("lora", (12, 6), seed=n),),
            },
            AdapterMeta("n", "sd1"),
        )
        for n in (1, 2)
    )
    write(first, tmp_path / "a", format="peft")
    (tmp_path / "a" / "notes").mkdir()
    for name in ("README.md", "unet/preview.png", "notes/one.txt"):
        (tmp_path / "a" / name).write_text(name)
    before = files_in(tmp_path / "a")
    real, calls = getattr(writing, failing), []

    def full(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(writing, failing, full)
    with pytest.raises(AdapterFileError, match="No space left on device"):
        write(second, tmp_path / "a", format="peft")
    assert files_in(tmp_path / "a") == before
    calls.clear()
    with pytest.raises(AdapterFileError, match="No space left"):
        write(second, tmp_path / "b", format="peft")
    monkeypatch.undo()
    assert [one.name for one in tmp_path.iterdir()] == ["a"]
    write(second, tmp_path / "a", format="peft")
    assert same(read(tmp_path / "a"), second)
    assert files_in(tmp_path / "a").keys() == before.keys()
    assert (tmp_path / "a" / "notes" / "one.txt").read_text() == "notes/one.txt"
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_is_being_written_is_no_adapter_yet(tmp_path: Path) -> None:
    adapter = Adapter({f"{ATTENTION}.to_q": (sample("lora", (8, 6)),)}, AdapterMeta("n", "sd1"))
    write(adapter, tmp_path / "a", format="peft")
    shutil.copytree(tmp_path / "a", tmp_path / f".a.1234{UNFINISHED}")
    assert Library(tmp_path).names == ("a",)


def edited(fixtures: Path, target: Path, **settings: object) -> Path:
    """A copy of the fixture with other settings."""
    shutil.copytree(fixtures / "adapters" / "peft_folder", target)
    config = json.loads((target / "adapter_config.json").read_text(encoding="utf-8"))
    (target / "adapter_config.json").write_text(json.dumps({**config, **settings}), encoding="utf-8")
    return target


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True: the weights are stored transposed"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            "init_lora_weights is pissa_niter_4, which changed the base",
        ),
        ({"peft_type": "VERA"}, "peft_type is VERA, expected LORA, LOHA, LOKR"),
        ({"peft_type": ["x"]}, "peft_type is"),
        ({"target_parameters": ["a.b"]}, "target_parameters is"),
        ({"use_qalora": True}, "pooled in groups"),
        ({"lora_alpha": "8"}, "lora_alpha is 8, expected a number"),
    ],
)
def test_settings_under_which_the_tensors_mean_something_else(
    fixtures: Path, tmp_path: Path, settings: dict[str, object], expected: str
) -> None:
    folder = edited(fixtures, tmp_path / "a", **settings)
    with pytest.raises(AdapterFileError, match=expected):
        read(folder)
    assert expected.split(",")[0].split(":")[0] in inspect(folder).problem


def test_settings_that_mean_nothing_here_are_let_through(fixtures: Path, tmp_path: Path) -> None:
    folder = edited(fixtures, tmp_path / "a", some_new_setting={"a": 1}, init_lora_weights="gaussian")
    assert same(read(folder), read(fixtures / "adapters" / "peft_folder"))


def test_a_component_is_known_by_its_class_or_by_its_names(fixtures: Path, tmp_path: Path) -> None:
    folder = edited(fixtures, tmp_path / "a", auto_mapping=None)
    assert same(read(folder), read(fixtures / "adapters" / "peft_folder"))


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, ""])
def test_a_configuration_that_is_none_is_named(fixtures: Path, tmp_path: Path, text: str) -> None:
    folder = edited(fixtures, tmp_path / "a")
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(AdapterFileError, match=r"adapter_config\.json: "):
        read(folder)
    assert "adapter_config.json" in inspect(folder).problem


def test_a_folder_of_pickles_is_refused_with_the_command_that_converts_them(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80")
    with pytest.raises(AdapterFileError, match=r'difflora convert ".*adapter_model\.bin"'):
        read(tmp_path)


def test_lokr_and_loha_of_peft_have_the_scale_of_the_configuration(tmp_path: Path) -> None:
    for peft_type, name in (("LOHA", "loha"), ("LOKR", "lokr"), ("LOKR", "lokr_full")):
        kind = sample(name, (8, 6))
        folder = tmp_path / name
        folder.mkdir()
        leaves = {leaf: tensor for leaf, tensor in kind.to_leaves().items() if leaf != "alpha"}
        save(folder, leaves, peft_type=peft_type, r=3, alpha=6)
        ((found,),) = read(folder).modules.values()
        factor = 2.0 if name == "lokr_full" else 4.0  # of a scale of 1, and of one half
        assert torch.allclose(found.delta(), kind.delta() * factor)
        assert not isinstance(found, LoKr) or found.rank is not None or found.scale == 1.0


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"r": 0}, "unet.r is 0"),
        ({"rank_pattern": {"to_q": 0}}, "unet.rank_pattern: to_q is 0"),
        ({"r": -1, "use_rslora": True}, "unet.r is -1"),
        ({"alpha": 10**400}, "unet.alpha is 1000"),
        ({"alpha": 1e300}, "unet.alpha is 1e"),
    ],
)
def test_a_whole_lokr_under_impossible_settings_is_refused(
    tmp_path: Path, config: dict[str, object], expected: str
) -> None:
    """Its scale has no rank but that of the configuration."""
    bad, good = tmp_path / "bad", tmp_path / "good"
    kind = sample("lokr_full", (8, 6))
    for folder, settings in ((bad, config), (good, {"r": 3})):
        folder.mkdir()
        save(folder, dict(kind.to_leaves()), peft_type="LOKR", **settings)
    with pytest.raises(AdapterFileError, match=expected):
        read(bad)
    assert re.search(expected, inspect(bad).problem)
    library = Library(tmp_path)
    assert (tuple(library.entries), list(library.broken)) == (("good",), ["bad"])


def test_a_deeply_nested_configuration_is_no_crash(tmp_path: Path) -> None:
    save(tmp_path, dict(sample("lokr_full", (8, 6)).to_leaves()))
    for depth in range(700, 1010, 5):
        config = f'{{"kasa_config": {"[" * depth}1{"]" * depth}}}'
        (tmp_path / "adapter_config.json").write_text(config, encoding="utf-8")
        assert inspect(tmp_path).problem


def save(folder: Path, leaves: dict[str, torch.Tensor], **config: object) -> None:
    from difflora.formats.container import write_tensors

    inner = f"{ATTENTION}.to_q".removeprefix("unet.")
    tensors = {f"base_model.model.{inner}.{leaf}": tensor.contiguous() for leaf, tensor in leaves.items()}
    write_tensors(folder / "adapter_model.safetensors", tensors)
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def test_biases_that_peft_saves_whole_are_replaced(tmp_path: Path) -> None:
    kind = sample("lora", (8, 6))
    assert isinstance(kind, LoRA)
    bias = torch.randn(8)
    leaves = {"lora_A.weight": kind.down, "lora_B.weight": kind.up, "base_layer.bias": bias}
    save(tmp_path, leaves, r=3, lora_alpha=1.5, bias="lora_only")
    ((lora, replaced),) = read(tmp_path).modules.values()
    assert torch.equal(lora.delta(), kind.delta())
    assert isinstance(replaced, Replace) and replaced.weight is None and replaced.bias is not None
    assert torch.equal(replaced.bias, bias)


def test_our_metadata_travels_in_the_folder(tmp_path: Path) -> None:
    meta = AdapterMeta("halftone", "sd1", trigger="in halftone style")
    write(Adapter({f"{ATTENTION}.to_q": (sample("lora", (8, 6)),)}, meta), tmp_path / "a", format="peft")
    found = read(tmp_path / "a").meta
    assert (found.name, found.family, found.trigger) == ("halftone", "sd1", "in halftone style")
    file = read_tensors(tmp_path / "a" / "adapter_model.safetensors")
    assert file.metadata["sshs_model_hash"] == file.data_hash and file.metadata["format"] == "pt"
