"""The family of an adapter, told from the names of its modules as every program writes them; no metadata."""

import pytest

from difflora.families import FAMILIES, Family, family
from difflora.formats.detect import detect, family_of_paths, stranger
from difflora.formats.diffusers import Diffusers
from difflora.formats.kohya import Kohya

BLOCK = "attentions_0_transformer_blocks_0"
CLIP = "text_model_encoder_layers_{}_self_attn_q_proj"
T5 = "encoder_block_0_layer_0_SelfAttention_q"
DOTTED_CLIP = "text_model.encoder.layers.0.self_attn.q_proj"

# What a file holds -> the names of some of its modules, and their widths where names are not enough.
FLATTENED = {
    "sd1": {
        "kohya, U-Net and text": (
            ["lora_unet_down_blocks_3_resnets_0_conv1", f"lora_te_{CLIP.format(0)}"],
            {},
        ),
        "kohya, attention": ([f"lora_unet_down_blocks_0_{BLOCK}_attn2_to_k"], {}),
        "attention that SDXL has too": (
            [f"lora_unet_down_blocks_1_{BLOCK}_attn2_to_k"],
            {f"lora_unet_down_blocks_1_{BLOCK}_attn2_to_k": 768},
        ),
        "the same of SD 2": (
            [f"lora_unet_down_blocks_1_{BLOCK}_attn2_to_k"],
            {f"lora_unet_down_blocks_1_{BLOCK}_attn2_to_k": 1024},
        ),
        "SGM names": (["lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"], {}),
        "text alone": ([f"lora_te_{CLIP.format(0)}"], {}),
        "text of SD 2": ([f"lora_te_{CLIP.format(22)}"], {}),
        "text of SD 2 as OpenCLIP has it": (["lora_te_model_transformer_resblocks_3_attn_in_proj"], {}),
        "first text encoder, wide": ([f"lora_te1_{CLIP.format(0)}"], {f"lora_te1_{CLIP.format(0)}": 1024}),
    },
    "sdxl": {
        "kohya": (["lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"], {}),
        "diffusers names": (["lora_unet_down_blocks_2_attentions_1_transformer_blocks_9_attn1_to_q"], {}),
        "attention that SD 1 has too": (
            [f"lora_unet_down_blocks_1_{BLOCK}_attn2_to_k"],
            {f"lora_unet_down_blocks_1_{BLOCK}_attn2_to_k": 2048},
        ),
        "both text encoders": ([f"lora_te1_{CLIP.format(0)}", f"lora_te2_{CLIP.format(31)}"], {}),
        "first text encoder alone": ([f"lora_te1_{CLIP.format(0)}"], {}),
        "second text encoder alone": ([f"lora_te2_{CLIP.format(20)}"], {}),
    },
    "flux": {
        "kohya": (["lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_single_blocks_0_linear1"], {}),
        "kohya with text": (["lora_unet_double_blocks_0_img_mlp_0", f"lora_te1_{CLIP.format(0)}"], {}),
        "OneTrainer": (["lora_transformer_single_transformer_blocks_0_attn_to_q", f"lora_te2_{T5}"], {}),
        "double blocks alone": (
            ["lora_transformer_transformer_blocks_0_attn_to_q"],
            {"lora_transformer_transformer_blocks_0_attn_to_q": 3072},
        ),
        "LyCORIS": (["lycoris_single_transformer_blocks_0_proj_mlp"], {}),
    },
    "sd3": {
        "kohya": (["lora_unet_joint_blocks_0_x_block_attn_qkv"], {}),
        "kohya, large": (["lora_unet_joint_blocks_37_x_block_attn_qkv"], {}),
        "kohya, two attentions": (["lora_unet_joint_blocks_3_x_block_attn2_qkv"], {}),
        "diffusers names": (["lora_transformer_transformer_blocks_20_attn_to_q"], {}),
        "first blocks alone": (
            ["lora_transformer_transformer_blocks_0_attn_to_q"],
            {"lora_transformer_transformer_blocks_0_attn_to_q": 1536},
        ),
        "three text encoders": (
            ["lora_unet_joint_blocks_0_x_block_mlp_fc1", f"lora_te2_{CLIP.format(20)}", f"lora_te3_{T5}"],
            {},
        ),
    },
}
DOTTED = {
    "sd1": {
        "diffusers": ["unet.down_blocks.3.resnets.0.conv1", f"text_encoder.{DOTTED_CLIP}"],
        "a U-Net alone": ["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"],
        "ComfyUI": ["diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"],
        "text alone": [f"text_encoder.{DOTTED_CLIP}"],
        "text as transformers 5 has it": ["text_encoder.encoder.layers.0.self_attn.q_proj"],
    },
    "sdxl": {
        "diffusers": ["unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q"],
        "ComfyUI": [
            "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q",
            f"text_encoders.clip_g.transformer.{DOTTED_CLIP}",
        ],
        "text": [f"text_encoder_2.{DOTTED_CLIP}"],
    },
    "flux": {
        "diffusers": ["transformer.single_transformer_blocks.0.attn.to_q"],
        "ComfyUI": [
            "diffusion_model.double_blocks.0.img_attn.qkv",
            f"text_encoders.clip_l.transformer.{DOTTED_CLIP}",
        ],
        "a checkpoint's names": ["model.diffusion_model.single_blocks.37.linear1"],
        "XLabs": ["double_blocks.0.processor.qkv_lora1", "double_blocks.18.processor.proj_lora2"],
        "T5": ["text_encoder_2.encoder.block.0.layer.1.DenseReluDense.wi_0"],
    },
    "sd3": {
        "diffusers": [
            "transformer.transformer_blocks.23.attn.to_q",
            "transformer.transformer_blocks.0.attn2.to_q",
        ],
        "ComfyUI": ["diffusion_model.joint_blocks.0.context_block.attn.qkv"],
        "text": [f"text_encoder_2.{DOTTED_CLIP}", "text_encoder_3.encoder.block.0.layer.0.SelfAttention.o"],
    },
}


@pytest.mark.parametrize(
    ("name", "what"), [(name, what) for name, cases in FLATTENED.items() for what in cases], ids=str
)
def test_flattened_names_tell_the_family(name: str, what: str) -> None:
    modules, widths = FLATTENED[name][what]
    found = detect(Kohya, modules, widths, {})
    assert found is not None
    assert found.name == name
    assert all(Kohya.path(module, found) for module in modules)


@pytest.mark.parametrize(
    ("name", "what"), [(name, what) for name, cases in DOTTED.items() for what in cases], ids=str
)
def test_dotted_names_tell_the_family(name: str, what: str) -> None:
    found = detect(Diffusers, DOTTED[name][what], {}, {})
    assert found is not None
    assert found.name == name
    assert all(Diffusers.path(module, found) for module in DOTTED[name][what])


@pytest.mark.parametrize("member", FAMILIES, ids=lambda member: member.name)
def test_every_module_of_a_family_is_its_own(member: Family) -> None:
    paths = sorted(member.paths)
    assert detect(Diffusers, paths, {}, {}) is member
    assert detect(Kohya, {member.kohya_group(path)[0] for path in paths}, {}, {}) is member
    assert family_of_paths(paths, {}, {}) is member


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        ({}, "sdxl"),
        ({"ss_base_model_version": "flux1"}, "flux"),
        ({"ss_base_model_version": "medium"}, "sd3"),
        ({"ss_base_model_version": "5-large"}, "sd3"),
        ({"ss_base_model_version": "sd_v1"}, "sd1"),
        ({"modelspec.architecture": "flux-1-dev/lora"}, "flux"),
        ({"modelspec.architecture": "Flux.1-dev/lora"}, "flux"),
        ({"modelspec.architecture": "stable-diffusion-3-5-large/lora"}, "sd3"),
        ({"modelspec.architecture": "stable-diffusion-v3.5-large/lora"}, "sd3"),
        ({"ss_network_module": "networks.lora_sd3"}, "sd3"),
        ({"ss_base_model_version": "chroma"}, "sdxl"),
    ],
)
def test_metadata_decides_where_names_and_widths_do_not(metadata: dict[str, str], name: str) -> None:
    found = detect(Kohya, [f"lora_te1_{CLIP.format(0)}"], {}, metadata)
    assert found is family(name)


def test_names_and_widths_outweigh_metadata() -> None:
    metadata = {"ss_base_model_version": "sdxl_base_v1-0"}
    assert detect(Kohya, ["lora_unet_joint_blocks_0_x_block_attn_qkv"], {}, metadata) is family("sd3")
    name = "lora_transformer_transformer_blocks_0_attn_to_q"
    assert detect(Kohya, [name], {name: 3072}, {"modelspec.architecture": "stable-diffusion-3"}) is family(
        "flux"
    )


@pytest.mark.parametrize(
    ("modules", "title"),
    [
        (["lora_prior_unet_down_blocks_0_0_channelwise_0"], "Stable Cascade"),
        (
            [
                "diffusion_model.double_stream_modulation_img.lin",
                "diffusion_model.double_blocks.0.img_attn.qkv",
            ],
            "Flux.2",
        ),
        (
            ["transformer.transformer_blocks.0.img_mod.1", "transformer.transformer_blocks.0.attn.to_q"],
            "Qwen-Image",
        ),
        (
            ["diffusion_model.layers.0.attention.to_q", "diffusion_model.noise_refiner.0.attention.to_q"],
            "Z-Image",
        ),
        (["diffusion_model.blocks.0.cross_attn.q"], "a video model"),
    ],
)
def test_strangers_are_known_by_name_although_they_share_names(modules: list[str], title: str) -> None:
    assert (stranger(modules) or "").startswith(title)
    assert detect(Diffusers, modules, {}, {}) is None


def test_no_family_is_taken_for_a_stranger() -> None:
    assert all(stranger(member.paths) is None for member in FAMILIES)
    assert all(stranger(set(member.kohya_names) | set(member.fused)) is None for member in FAMILIES)
