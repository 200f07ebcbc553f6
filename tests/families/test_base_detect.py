"""What a base is, told from headers and configs alone; and what is no base."""

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from difflora.errors import BaseModelError, ConfigError
from difflora.families import family, identify
from difflora.families.family import ASSETS, canonical_names
from difflora.families.originals import original_shapes, original_vae_shapes
from difflora.families.single_file import checkpoint_problems
from difflora.families.skeleton import skeleton
from tests.families.tiny_bases import save_hollow

Shapes = dict[str, tuple[int, ...]]
CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"


@cache
def _real_shapes(variant: str) -> Shapes:
    member = family("sdxl" if variant == "sdxl" else "sd1")
    vae = skeleton(ASSETS / variant / "vae").state_dict()
    found = original_vae_shapes({name: tuple(value.shape) for name, value in vae.items()})
    found = {f"first_stage_model.{name}": shape for name, shape in found.items()}
    for part in member.components:
        state = skeleton(ASSETS / variant / part.name).state_dict()
        names = canonical_names(state, part.name)
        original = part.originals[-1 if variant == "sd2" else 0]
        shapes = original_shapes({names[key]: tuple(state[key].shape) for key in state}, original.naming)
        found |= {original.prefix + name: shape for name, shape in shapes.items()}
    return found


def real_shapes(variant: str) -> Shapes:
    """Every tensor of a real checkpoint of that variant."""
    return dict(_real_shapes(variant))


@pytest.mark.parametrize(
    ("variant", "extra", "metadata", "prediction", "zero_snr", "resolution"),
    [
        ("sd15", {}, {}, "epsilon", False, 512),
        ("sd15", {"v_pred": ()}, {}, "v_prediction", False, 512),
        ("sd2", {}, {}, "v_prediction", False, 768),
        ("sd2", {}, {"modelspec.architecture": "stable-diffusion-v2-512"}, "epsilon", False, 512),
        ("sd2", {}, {"modelspec.prediction_type": "epsilon"}, "epsilon", False, 512),
        ("sdxl", {}, {}, "epsilon", False, 1024),
        ("sdxl", {"v_pred": (), "ztsnr": ()}, {}, "v_prediction", True, 1024),
        ("sdxl", {}, {"modelspec.prediction_type": "v"}, "v_prediction", False, 1024),
    ],
)
def test_a_checkpoint_tells_what_it_is(
    tmp_path: Path,
    variant: str,
    extra: Shapes,
    metadata: dict,
    prediction: str,
    zero_snr: bool,
    resolution: int,
) -> None:
    facts = identify(save_hollow(real_shapes(variant) | extra, tmp_path / "my model.safetensors", metadata))
    assert (facts.family, facts.variant) == ("sdxl" if variant == "sdxl" else "sd1", variant)
    assert (facts.prediction_type, facts.zero_terminal_snr) == (prediction, zero_snr)
    assert (facts.resolution, facts.name, facts.sha256) == (resolution, "my model", "")


@pytest.mark.parametrize(("variant", "tensors"), [("sd15", 1130), ("sd2", 1214), ("sdxl", 2513)])
def test_real_checkpoints_are_checked_against_the_real_configs(variant: str, tensors: int) -> None:
    """SD 1.5 has 1131 in the wild, one of them position_ids, and SDXL 2515, with logit_scale too."""
    shapes = real_shapes(variant)
    member = family("sdxl" if variant == "sdxl" else "sd1")
    position_ids = f"{member.components[1].originals[0].prefix}text_model.embeddings.position_ids"
    harmless = {position_ids: (1, 77), "model_ema.decay": (), "alphas_cumprod": (1000,)}
    problems = checkpoint_problems(shapes | harmless, member, configs=ASSETS / variant, has_vae=True)
    assert len(shapes) == tensors
    assert problems == []


def test_overrides_win_over_detection(tmp_path: Path, shapes_folder: Path) -> None:
    path = save_hollow(real_shapes("sd2"), tmp_path / "a.safetensors")
    facts = identify(path, prediction_type="epsilon")
    assert (facts.prediction_type, facts.resolution) == ("epsilon", 512)
    assert identify(path, zero_terminal_snr=True).zero_terminal_snr
    facts = identify(shapes_folder, prediction_type="epsilon", zero_terminal_snr=False)
    assert (facts.prediction_type, facts.zero_terminal_snr) == ("epsilon", False)
    with pytest.raises(BaseModelError, match="cannot be combined"):
        identify(shapes_folder, prediction_type="epsilon")
    with pytest.raises(ConfigError, match="epsilon, v_prediction"):
        identify(path, prediction_type="v")
    with pytest.raises(ConfigError, match="no family"):
        identify(path, family="sd9")


def test_the_embedded_base(shapes_folder: Path) -> None:
    facts = identify(str(shapes_folder))
    assert (facts.family, facts.variant, facts.name) == ("sd1", "shapes", "shapes-sd")
    assert (facts.prediction_type, facts.zero_terminal_snr, facts.resolution) == ("v_prediction", True, 128)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("sd15", ("sd1", "sd15", "epsilon", 512)),
        ("sd2", ("sd1", "sd2", "epsilon", 512)),
        ("sd2-v", ("sd1", "sd2", "v_prediction", 768)),
        ("sdxl", ("sdxl", "sdxl", "epsilon", 1024)),
    ],
)
def test_a_folder_tells_what_it_is(variant: str, expected: tuple) -> None:
    facts = identify(ASSETS / variant)
    assert (facts.family, facts.variant, facts.prediction_type, facts.resolution) == expected


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"], "an adapter"),
        (["unet.down_blocks.0.attentions.0.proj_in.lora_A.weight"], "an adapter"),
        (["emb_params"], "textual-inversion"),
        (
            ["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"],
            r"bases of Flux\.1 cannot be loaded yet",
        ),
        (["double_blocks.0.img_attn.qkv.weight"], r"Adapter files for Flux\.1 work"),
        (
            ["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"],
            r"bases of Stable Diffusion 3 and 3\.5",
        ),
        (["conditioner.embedders.0.model.text_projection"], "refiner"),
        (["control_model.input_blocks.0.0.weight"], "ControlNet"),
        (["decoder.up.0.block.0.conv1.weight"], "a VAE; give it as vae="),
        (["down_blocks.0.resnets.0.conv1.weight"], "a UNet alone"),
        (["conditioner.embedders.1.model.positional_embedding", "edm_mean"], "Playground"),
        (["something.else"], "It holds something.else"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path: Path, names: list[str], what: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({name: torch.zeros(1) for name in names}, path)
    with pytest.raises(BaseModelError, match=what):
        identify(path)


def test_other_sizes_and_inpainting_are_refused(tmp_path: Path) -> None:
    shapes = real_shapes("sd15")
    with pytest.raises(BaseModelError, match="takes 9 channels"):
        identify(save_hollow(shapes | {CONV_IN: (320, 9, 3, 3)}, tmp_path / "inpaint.safetensors"))
    with pytest.raises(BaseModelError, match="64 channels wide"):
        identify(save_hollow(shapes | {CONV_IN: (64, 4, 3, 3)}, tmp_path / "small.safetensors"))


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
def test_pickles_are_refused_with_advice(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"\x80\x04")
    with pytest.raises(BaseModelError, match=r"pickle.*\.safetensors"):
        identify(path)


def test_paths_that_lead_nowhere(tmp_path: Path, shapes_folder: Path) -> None:
    for base in (
        tmp_path / "absent",
        tmp_path / "absent.safetensors",
        shapes_folder.parent / "shapes-ds",
        "x",
    ):
        with pytest.raises(BaseModelError, match="no such file or folder"):
            identify(base)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"not a tensor file at all")
    with pytest.raises(BaseModelError, match="cannot be read as safetensors"):
        identify(damaged)
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    with pytest.raises(BaseModelError, match=r"expected a \.safetensors"):
        identify(text)


def test_a_hub_id_that_cannot_be_had_is_one_clear_error() -> None:
    with pytest.raises(BaseModelError, match=r"'somebody/no-such-model'.*could not be downloaded"):
        identify("somebody/no-such-model")


def test_folders_that_are_no_base(tmp_path: Path, shapes_folder: Path) -> None:
    cases = {
        "adapter": ("adapter_config.json", "holds an adapter"),
        "lora": ("pytorch_lora_weights.safetensors", "holds an adapter"),
        "component": ("config.json", "one component"),
        "collection": ("model.safetensors", "Did you mean the checkpoint"),
        "empty": ("readme.txt", r"no model_index\.json"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / content).write_text("{}")
        with pytest.raises(BaseModelError, match=message):
            identify(tmp_path / name)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "model_index.json",
            {"_class_name": "FluxPipeline"},
            r"Flux\.1 cannot be loaded yet.*XL",
        ),
        ("model_index.json", {"_class_name": "StableDiffusion3Pipeline"}, "cannot be loaded yet"),
        ("model_index.json", {"_class_name": "PixArtAlphaPipeline"}, "is a PixArtAlphaPipeline"),
        ("unet/config.json", {"in_channels": 9}, "takes 9 channels"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "predicts 'sample'"),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "Playground"),
        ("scheduler/scheduler_config.json", {"sigma_data": 0.5}, "CosXL"),
    ],
)
def test_folders_of_other_models(
    tmp_path: Path, shapes_folder: Path, file: str, change: dict, message: str
) -> None:
    ignored = shutil.ignore_patterns("*.safetensors")
    folder = Path(shutil.copytree(shapes_folder, tmp_path / "base", ignore=ignored))
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | change))
    with pytest.raises(BaseModelError, match=message):
        identify(folder)
    (folder / file).write_text("{")
    with pytest.raises(BaseModelError, match="is no JSON"):
        identify(folder)
    (folder / file).unlink()
    with pytest.raises(BaseModelError):
        identify(folder)


def test_importing_the_families_is_light() -> None:
    code = (
        "import sys, difflora.families as f; f.family('sdxl').kohya_names; "
        "print([name for name in ('torch', 'diffusers', 'transformers', 'gradio') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
