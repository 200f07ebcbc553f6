"""Names and rows of Flux.1 and Stable Diffusion 3, against diffusers' own conversion of whole checkpoints."""

import re
from functools import cache

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from torch import Tensor

from difflora.families import Family, family
from difflora.families.family import ASSETS, path_table
from difflora.families.namings import NAMINGS
from difflora.families.skeleton import skeleton
from difflora.families.spellings import Slices
from difflora.families.tables import pack, unpack

FLUX, SD3 = family("flux"), family("sd3")
CONVERTERS = {
    "flux": convert_flux_transformer_checkpoint_to_diffusers,
    "sd3-medium": convert_sd3_transformer_checkpoint_to_diffusers,
    "sd35-medium": convert_sd3_transformer_checkpoint_to_diffusers,
    "sd35-large": convert_sd3_transformer_checkpoint_to_diffusers,
}
BLOCK, SINGLE = "transformer.transformer_blocks", "transformer.single_transformer_blocks"
EMBED, CLIP, T5 = "transformer.time_text_embed", "text_model.encoder.layers.7", "encoder.block.0.layer"
FLAT_CLIP, FLAT_T5 = CLIP.replace(".", "_"), T5.replace(".", "_")


@cache
def narrow_state(variant: str) -> dict[str, Tensor]:
    """Random parameters of a true transformer, with all their rows and one column."""
    generator = torch.Generator().manual_seed(0)
    state = skeleton(ASSETS / variant / "transformer").state_dict()
    return {
        name: torch.randn((value.shape[0], *[1] * (value.ndim > 1)), generator=generator)
        for name, value in state.items()
        if name != "pos_embed.pos_embed"
    }


def assembled(slices: Slices, parts: dict[str, Tensor]) -> Tensor:
    """The rows of an original module, from those of ours."""
    pieces, used = {}, dict.fromkeys(parts, 0)
    unit = next(iter(parts.values())).shape[0] // sum(
        one.stop - one.start for one in slices if one.path == slices[0].path
    )
    for one in slices:
        rows, first = unit * (one.stop - one.start), used[one.path]
        pieces[one.start] = parts[one.path][first : first + rows]
        used[one.path] += rows
    return torch.cat([pieces[start] for start in sorted(pieces)])


def original_state(member: Family, variant: str) -> dict[str, Tensor]:
    """The same parameters as an original checkpoint names and orders them, by the family's own tables."""
    state = narrow_state(variant)
    paths = [path.split(".", 1)[1] for path in path_table(variant) if path.startswith("transformer.")]
    names = NAMINGS[member.components[0].originals[0].naming](paths)
    found: dict[str, Tensor] = {}
    for name in names:
        first = names[name][0].path
        if "processor" in name or name.endswith(".scale") or name == "img_in.proj":
            continue
        for leaf in ("weight", "bias"):
            if f"{first}.{leaf}" not in state:
                continue
            slices = member.slices(f"diffusion_model.{name}", rows=state[f"{first}.{leaf}"].shape[0])
            parts = {one.path: state[f"{one.path.removeprefix('transformer.')}.{leaf}"] for one in slices}
            leaf = "scale" if "query_norm" in name or "key_norm" in name else leaf
            found[f"{name}.{leaf}"] = assembled(slices, parts)
    return found


@pytest.mark.parametrize("variant", CONVERTERS)
def test_diffusers_converts_a_checkpoint_of_our_names_to_the_model(variant: str) -> None:
    member = FLUX if variant == "flux" else SD3
    expected = narrow_state(variant)
    originals = original_state(member, variant)
    positions = {} if variant == "flux" else {"pos_embed": torch.zeros(1)}
    converted = CONVERTERS[variant](originals | positions)
    converted.pop("pos_embed.pos_embed", None)
    assert set(converted) == set(expected)
    wrong = [name for name in expected if not torch.equal(converted[name], expected[name])]
    assert wrong == []


@pytest.mark.parametrize("member", [FLUX, SD3], ids=["flux", "sd3"])
def test_every_module_has_a_place_in_a_kohya_file(member: Family) -> None:
    """Its group holds it, its own name is read as it alone, and all parts of a group say the same group."""
    for path in member.paths:
        name, slices = member.kohya_group(path)
        assert path in {one.path for one in slices}
        assert member.slices(name) == slices
        assert member.slices(member.kohya_name(path))[0].path == path
        assert member.kohya_names[member.kohya_name(path)] == path
        assert {member.kohya_group(one.path)[0] for one in slices} == {name}
        dotted, inner = path, path.split(".", 1)[1].removeprefix("text_model.")
        assert member.paths_of(dotted) == (path,)
        assert member.paths_of(f"{path.split('.', 1)[0]}.{inner}") == (path,)


@pytest.mark.parametrize("member", [FLUX, SD3], ids=["flux", "sd3"])
def test_the_slices_of_a_module_cover_its_rows_once(member: Family) -> None:
    for slices in member.fused.values():
        ends = sorted((one.start, one.stop) for one in slices)
        assert [start for start, _ in ends] == [0, *(stop for _, stop in ends[:-1])]
        assert {one.of for one in slices} == {ends[-1][1]}


@pytest.mark.parametrize("variant", CONVERTERS)
def test_shares_are_those_of_the_true_shapes(variant: str) -> None:
    rows = {name.rsplit(".", 1)[0]: value.shape[0] for name, value in narrow_state(variant).items()}
    member = FLUX if variant == "flux" else SD3
    for name, slices in NAMINGS[member.components[0].originals[0].naming](rows).items():
        units = dict.fromkeys((one.path for one in slices), 0)
        for one in slices:
            units[one.path] += one.stop - one.start
        assert len({rows[path] / count for path, count in units.items()}) == 1, name


@pytest.mark.parametrize(
    ("member", "name", "path"),
    [
        (FLUX, "lora_unet_double_blocks_0_img_attn_proj", f"{BLOCK}.0.attn.to_out.0"),
        (FLUX, "lora_unet_double_blocks_18_txt_mlp_2", f"{BLOCK}.18.ff_context.net.2"),
        (FLUX, "lora_unet_double_blocks_1_txt_mod_lin", f"{BLOCK}.1.norm1_context.linear"),
        (FLUX, "lora_unet_single_blocks_37_linear2", f"{SINGLE}.37.proj_out"),
        (FLUX, "lora_unet_single_blocks_0_modulation_lin", f"{SINGLE}.0.norm.linear"),
        (FLUX, "lora_unet_guidance_in_in_layer", f"{EMBED}.guidance_embedder.linear_1"),
        (FLUX, "lora_unet_time_in_out_layer", f"{EMBED}.timestep_embedder.linear_2"),
        (FLUX, "lora_unet_img_in", "transformer.x_embedder"),
        (FLUX, "lora_unet_final_layer_linear", "transformer.proj_out"),
        (FLUX, "diffusion_model.double_blocks.0.img_attn.norm.key_norm", f"{BLOCK}.0.attn.norm_k"),
        (FLUX, "double_blocks.0.txt_attn.norm.query_norm.scale", f"{BLOCK}.0.attn.norm_added_q"),
        (FLUX, "double_blocks.2.processor.proj_lora2", f"{BLOCK}.2.attn.to_add_out"),
        (FLUX, "single_blocks.2.processor.proj_lora", f"{SINGLE}.2.proj_out"),
        (FLUX, f"{SINGLE}.2.attn.to_q", f"{SINGLE}.2.attn.to_q"),
        (FLUX, "lora_transformer_transformer_blocks_2_attn_to_add_out", f"{BLOCK}.2.attn.to_add_out"),
        (FLUX, f"lora_te3_{FLAT_T5}_1_DenseReluDense_wi_0", f"text_encoder_2.{T5}.1.DenseReluDense.wi_0"),
        (FLUX, f"lora_te2_{FLAT_T5}_0_SelfAttention_q", f"text_encoder_2.{T5}.0.SelfAttention.q"),
        (FLUX, f"text_encoders.t5xxl.transformer.{T5}.0.layer_norm", f"text_encoder_2.{T5}.0.layer_norm"),
        (FLUX, f"lora_te1_{FLAT_CLIP}_mlp_fc1", f"text_encoder.{CLIP}.mlp.fc1"),
        (SD3, "lora_unet_joint_blocks_37_x_block_mlp_fc1", f"{BLOCK}.37.ff.net.0.proj"),
        (SD3, "lora_unet_joint_blocks_0_context_block_attn_proj", f"{BLOCK}.0.attn.to_add_out"),
        (SD3, "lora_unet_joint_blocks_12_x_block_attn2_proj", f"{BLOCK}.12.attn2.to_out.0"),
        (SD3, "diffusion_model.joint_blocks.1.x_block.attn.ln_q", f"{BLOCK}.1.attn.norm_q"),
        (SD3, "lora_unet_joint_blocks_0_x_block_adaLN_modulation_1", f"{BLOCK}.0.norm1.linear"),
        (SD3, "lora_unet_x_embedder_proj", "transformer.pos_embed.proj"),
        (SD3, "lora_unet_y_embedder_mlp_2", f"{EMBED}.text_embedder.linear_2"),
        (SD3, "lora_unet_context_embedder", "transformer.context_embedder"),
        (SD3, f"lora_te2_{FLAT_CLIP}_self_attn_out_proj", f"text_encoder_2.{CLIP}.self_attn.out_proj"),
        (SD3, f"lora_te3_{FLAT_T5}_0_SelfAttention_q", f"text_encoder_3.{T5}.0.SelfAttention.q"),
        (SD3, f"text_encoders.clip_g.transformer.{CLIP}.mlp.fc1", f"text_encoder_2.{CLIP}.mlp.fc1"),
        (SD3, "lora_te1_text_projection", "text_encoder.text_projection"),
        (FLUX, "transformer.img_in.proj", "transformer.x_embedder"),
        (FLUX, "transformer.double_blocks.3.img_attn.qkv.0", f"{BLOCK}.3.attn.to_q"),
        (FLUX, "transformer.double_blocks.3.txt_attn.qkv.2", f"{BLOCK}.3.attn.add_v_proj"),
        (FLUX, "transformer.single_blocks.3.linear1.3", f"{SINGLE}.3.proj_mlp"),
        (FLUX, f"clip_l.{CLIP}.mlp.fc1", f"text_encoder.{CLIP}.mlp.fc1"),
        (FLUX, f"t5.{T5}.1.DenseReluDense.wo", f"text_encoder_2.{T5}.1.DenseReluDense.wo"),
        (SD3, "transformer.joint_blocks.3.x_block.attn2.qkv.1", f"{BLOCK}.3.attn2.to_k"),
        (SD3, "transformer.joint_blocks.3.context_block.attn.qkv.0", f"{BLOCK}.3.attn.add_q_proj"),
        (SD3, f"clip_g.{CLIP}.mlp.fc2", f"text_encoder_2.{CLIP}.mlp.fc2"),
        (SD3, f"t5.{T5}.0.SelfAttention.o", f"text_encoder_3.{T5}.0.SelfAttention.o"),
    ],
)
def test_known_spellings(member: Family, name: str, path: str) -> None:
    assert member.paths_of(name) == (path,)


@pytest.mark.parametrize(
    ("member", "name", "paths"),
    [
        (FLUX, "lora_unet_double_blocks_0_txt_attn_qkv", ["add_q_proj", "add_k_proj", "add_v_proj"]),
        (FLUX, "double_blocks.0.processor.qkv_lora1", ["to_q", "to_k", "to_v"]),
        (FLUX, "single_blocks.0.processor.qkv_lora", ["to_q", "to_k", "to_v"]),
        (FLUX, "lora_unet_single_blocks_0_linear1", ["to_q", "to_k", "to_v", "proj_mlp"]),
        (SD3, "lora_unet_joint_blocks_0_context_block_attn_qkv", ["add_q_proj", "add_k_proj", "add_v_proj"]),
        (SD3, "diffusion_model.joint_blocks.0.x_block.attn2.qkv", ["to_q", "to_k", "to_v"]),
    ],
)
def test_fused_spellings(member: Family, name: str, paths: list[str]) -> None:
    assert [path.rsplit(".", 1)[1] for path in member.paths_of(name)] == paths


def test_what_is_written_is_what_kohya_writes() -> None:
    """Every name is in the form of kohya's own trainers, with no name of diffusers among them."""
    flux = {FLUX.kohya_group(path)[0] for path in FLUX.paths if path.startswith("transformer.")}
    form = re.compile(
        r"lora_unet_((double|single)_blocks_\d+|img_in|txt_in|time_in|vector_in|guidance_in|final_layer)(_.+)?"
    )
    assert all(form.fullmatch(name) for name in flux)
    sd3 = {SD3.kohya_group(path)[0] for path in SD3.paths if path.startswith("transformer.")}
    form = re.compile(r"lora_unet_(joint_blocks_\d+|(x|t|y|context)_embedder|final_layer)(_.+)?")
    assert all(form.fullmatch(name) for name in sd3)


@pytest.mark.parametrize("member", [FLUX, SD3], ids=["flux", "sd3"])
def test_tables_stay_small(member: Family) -> None:
    assert all((ASSETS / variant / "paths.json").stat().st_size < 100_000 for variant in member.variants)


def test_packed_tables_unpack_to_the_same_names() -> None:
    names = ["a", "x.0.p", "x.0.q", "x.1.p", "x.1.q", "x.2.p", "y.0.p", "y.1.p", "x.3.p", "b.c"]
    packed = pack(names)
    assert len(packed) == 6
    assert unpack(packed) == names
    for variant in CONVERTERS:
        assert unpack(pack(path_table(variant))) == list(path_table(variant))
