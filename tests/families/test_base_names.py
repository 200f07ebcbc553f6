"""The tables of module paths, against models of the true architectures; and the spellings of every path."""

from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors import safe_open
from torch import nn

from difflora.errors import ConfigError
from difflora.families import FAMILIES, Family, family
from difflora.families.family import ASSETS, canonical_names, path_table
from difflora.families.model import Model
from difflora.families.originals import original_shapes, original_vae_shapes
from difflora.families.skeleton import skeleton
from difflora.families.spellings import Slices

SD1, SDXL = family("sd1"), family("sdxl")
VARIANTS = [(member, variant) for member in FAMILIES for variant in member.variants]
ADAPTERS = Path(__file__).parents[1] / "fixtures" / "adapters"
LAYER, TEXT = "encoder_layers_22", "text_encoder.text_model.encoder.layers.22"
Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


@cache
def real(variant: str, component: str) -> nn.Module:
    return skeleton(ASSETS / variant / component)


@pytest.mark.parametrize(("member", "variant"), VARIANTS, ids=[variant for _, variant in VARIANTS])
def test_a_table_holds_exactly_the_modules_with_parameters(member: Family, variant: str) -> None:
    expected = set()
    for part in (part for part in member.components if (ASSETS / variant / part.name).is_dir()):
        modules = dict(real(variant, part.name).named_modules())
        owners = [name for name, module in modules.items() if list(module.parameters(recurse=False))]
        expected |= {f"{part.name}.{name}" for name in canonical_names(owners, part.name).values()}
    assert set(path_table(variant)) == expected


@pytest.mark.parametrize(
    ("variant", "component", "parameters"),
    [
        ("sd15", "unet", 859_520_964),
        ("sd15", "text_encoder", 123_060_480),
        ("sd15", "vae", 83_653_863),
        ("sd2", "unet", 865_910_724),
        ("sd2-v", "unet", 865_910_724),
        ("sd2-v", "text_encoder", 340_387_840),
        ("sdxl", "unet", 2_567_463_684),
        ("sdxl", "text_encoder", 123_060_480),
        ("sdxl", "text_encoder_2", 694_659_840),
        ("sdxl", "vae", 83_653_863),
        ("flux", "transformer", 11_901_408_320),
        ("flux", "text_encoder_2", 4_762_310_656),
        ("sd3-medium", "transformer", 2_028_328_000),
        ("sd3-medium", "text_encoder", 123_650_304),
        ("sd35-medium", "transformer", 2_243_171_520),
        ("sd35-large", "transformer", 8_056_627_520),
    ],
)
def test_configs_give_models_of_the_known_size(variant: str, component: str, parameters: int) -> None:
    assert sum(parameter.numel() for parameter in real(variant, component).parameters()) == parameters


def test_attention_projections_are_as_many_as_published() -> None:
    def projections(variant: str, component: str) -> int:
        ends = (
            ".to_q",
            ".to_k",
            ".to_v",
            ".to_out.0",
            ".q_proj",
            ".k_proj",
            ".v_proj",
            ".self_attn.out_proj",
        )
        return sum(path.startswith(f"{component}.") and path.endswith(ends) for path in path_table(variant))

    assert projections("sd15", "unet") == projections("sd2", "unet") == 128
    assert projections("sdxl", "unet") == 560
    assert projections("sd15", "text_encoder") == projections("sdxl", "text_encoder") == 48


def test_kohya_names_the_788_layers_of_sdxl_as_sgm_does() -> None:
    layers = {
        f"unet.{name}"
        for name, module in real("sdxl", "unet").named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name.startswith(("down_", "mid_", "up_"))
    }
    names = {SDXL.kohya_name(path) for path in layers}
    starts = ("lora_unet_input_blocks_", "lora_unet_middle_block_", "lora_unet_output_blocks_")
    assert len(layers) == len(names) == 788
    assert all(name.startswith(starts) for name in names)


@pytest.mark.parametrize("member", FAMILIES, ids=lambda member: member.name)
def test_no_two_paths_share_a_spelling(member: Family) -> None:
    meanings: dict[str, set[Slices]] = {}
    for spelling, slices in member._pairs():
        meanings.setdefault(spelling, set()).add(slices)
    assert {spelling: found for spelling, found in meanings.items() if len(found) > 1} == {}
    assert set(meanings) == {*member.kohya_names, *member.fused}


@pytest.mark.parametrize("member", FAMILIES, ids=lambda member: member.name)
def test_a_whole_path_is_all_the_rows_however_many(member: Family) -> None:
    heights = {one.rows for one in member.specials}
    assert member.whole_path("no_such_module") is None
    for spelling in {*member.kohya_names, *member.fused}:
        every = {member.slices(spelling), *(member.slices(spelling, rows=rows) for rows in heights)}
        is_whole = len(every) == 1 and all(slices[0].is_whole for slices in every)
        assert member.whole_path(spelling) == (member.slices(spelling)[0].path if is_whole else None)


@pytest.mark.parametrize("member", FAMILIES, ids=lambda member: member.name)
def test_what_is_written_is_read_as_the_same_path(member: Family) -> None:
    assert all(member.kohya_names[member.kohya_name(path)] == path for path in member.paths)
    assert all(member.component(path).name == path.split(".")[0] for path in member.paths)


@pytest.mark.parametrize(
    ("member", "path", "name"),
    [
        (SD1, f"unet.{Q}", "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"),
        (SDXL, f"unet.{Q}", "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"),
        (SDXL, "unet.up_blocks.0.upsamplers.0.conv", "lora_unet_output_blocks_2_2_conv"),
        (SDXL, "unet.up_blocks.1.upsamplers.0.conv", "lora_unet_output_blocks_5_2_conv"),
        (SDXL, "unet.down_blocks.0.downsamplers.0.conv", "lora_unet_input_blocks_3_0_op"),
        (SDXL, "unet.mid_block.resnets.1.time_emb_proj", "lora_unet_middle_block_2_emb_layers_1"),
        (SDXL, "unet.add_embedding.linear_2", "lora_unet_label_emb_0_2"),
        (
            SD1,
            "text_encoder.text_model.encoder.layers.0.mlp.fc1",
            "lora_te_text_model_encoder_layers_0_mlp_fc1",
        ),
        (
            SDXL,
            "text_encoder_2.text_model.encoder.layers.31.self_attn.out_proj",
            "lora_te2_text_model_encoder_layers_31_self_attn_out_proj",
        ),
        (SDXL, "text_encoder_2.text_projection", "lora_te2_text_projection"),
    ],
)
def test_the_spelling_that_is_written(member: Family, path: str, name: str) -> None:
    assert member.kohya_name(path) == name


@pytest.mark.parametrize(
    ("member", "name", "path"),
    [
        (SDXL, "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", f"unet.{Q}"),
        (SD1, "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", f"unet.{Q}"),
        (SD1, "lora_unet_output_blocks_2_1_conv", "unet.up_blocks.0.upsamplers.0.conv"),
        (SD1, "lora_unet_output_blocks_8_2_conv", "unet.up_blocks.2.upsamplers.0.conv"),
        (
            SD1,
            "lora_te1_text_model_final_layer_norm",
            "text_encoder.text_model.final_layer_norm",
        ),
        (
            SD1,
            "lora_te_encoder_layers_0_self_attn_q_proj",
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        ),
        (SD1, f"lora_te_text_model_{LAYER}_self_attn_out_proj", f"{TEXT}.self_attn.out_proj"),
        (SD1, "lora_te_model_transformer_resblocks_22_attn_q_proj", f"{TEXT}.self_attn.q_proj"),
        (SD1, "lora_te_model_transformer_resblocks_22_attn_out_proj", f"{TEXT}.self_attn.out_proj"),
        (SD1, "lora_te_model_transformer_resblocks_22_mlp_c_fc", f"{TEXT}.mlp.fc1"),
        (SD1, "lora_te_transformer_resblocks_22_mlp_c_proj", f"{TEXT}.mlp.fc2"),
        (SD1, "lora_te_model_transformer_resblocks_22_ln_2", f"{TEXT}.layer_norm2"),
        (SD1, "lycoris_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", f"unet.{Q}"),
        (SD1, "oft_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", f"unet.{Q}"),
        (
            SDXL,
            "lora_te2_model_transformer_resblocks_31_mlp_c_fc",
            "text_encoder_2.text_model.encoder.layers.31.mlp.fc1",
        ),
    ],
)
def test_foreign_spellings_are_read(member: Family, name: str, path: str) -> None:
    assert member.kohya_names[name] == path


def test_the_attention_of_open_clip_in_one_is_three_modules() -> None:
    ends = [
        path.removeprefix(f"{TEXT}.") for path in SD1.paths_of("lora_te_model_transformer_resblocks_22_attn")
    ]
    assert ends == ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    assert SD1.paths_of("lora_te_model_transformer_resblocks_23_attn") == ()  # which SD 2.x does not use


@pytest.mark.parametrize("stem", ["kohya_sd15_locon", "kohya_sdxl_diffnames_lora"])
def test_every_key_of_a_file_by_kohya_is_known(stem: str) -> None:
    member = SDXL if "sdxl" in stem else SD1
    file = ADAPTERS / f"{stem}.safetensors"
    with safe_open(file, framework="pt") as tensors:
        names = {key.split(".", 1)[0] for key in tensors.keys()}  # noqa: SIM118
    assert len(names) > 100
    assert names <= set(member.kohya_names)


def test_paths_that_do_not_exist_are_key_errors() -> None:
    with pytest.raises(KeyError):
        SD1.kohya_name("unet.nothing")
    with pytest.raises(KeyError):
        SD1.component("text_encoder_2.text_projection")
    with pytest.raises(ConfigError, match=r"sd1 .*sdxl"):
        family("sd9")


def test_a_model_has_no_path_beyond_its_family(shapes_model: Model) -> None:
    assert set(shapes_model.shapes()) <= SD1.paths


@pytest.mark.parametrize("variant", ["sd15", "sd2", "sdxl"])
def test_original_unet_names_agree_with_diffusers(variant: str) -> None:
    unet = real(variant, "unet")
    shapes = {name: tuple(value.shape) for name, value in unet.state_dict().items()}
    original = {
        f"model.diffusion_model.{name}": torch.empty(shape, device="meta")
        for name, shape in original_shapes(shapes, "sgm").items()
    }
    converted = convert_ldm_unet_checkpoint(original, dict(unet.config))
    assert len(original) == len(shapes)
    assert {name: tuple(value.shape) for name, value in converted.items()} == shapes


def test_original_vae_names_agree_with_diffusers() -> None:
    vae = real("sd15", "vae")
    shapes = {name: tuple(value.shape) for name, value in vae.state_dict().items()}
    original = {
        f"first_stage_model.{name}": torch.empty(shape, device="meta")
        for name, shape in original_vae_shapes(shapes).items()
    }
    converted = convert_ldm_vae_checkpoint(original, dict(vae.config))
    assert {name: tuple(value.shape) for name, value in converted.items()} == shapes


@pytest.mark.parametrize(("variant", "component"), [("sd2", "text_encoder"), ("sdxl", "text_encoder_2")])
def test_original_open_clip_names_agree_with_diffusers(variant: str, component: str) -> None:
    encoder = real(variant, component)
    state = encoder.state_dict()
    names = canonical_names(state, component)
    shapes = {names[name]: tuple(value.shape) for name, value in state.items()}
    prefix = "conditioner.embedders.1.model."
    original = {
        prefix + name: torch.empty(shape, device="meta")
        for name, shape in original_shapes(shapes, "open_clip").items()
    }
    converted = convert_open_clip_checkpoint(encoder, original, prefix=prefix)
    assert {name: tuple(value.shape) for name, value in converted.items()} == shapes
