"""Which tensors a single-file checkpoint must hold: original (LDM, SGM) names and shapes from a model's own.

These maps only check a file. It is read by diffusers, which has maps of its own.
"""

import re
from collections.abc import Callable, Mapping

from difflora.families.headers import Shapes
from difflora.families.sgm import sgm_names
from difflora.families.spellings import Naming

VAE_PREFIXES = ("first_stage_model.", "vae.")

# Known tensors that no component needs, by the beginning of their names.
_HARMLESS = re.compile(
    "|".join(
        (
            r"model_ema\.|.*\.position_ids$",
            r"v_pred$|ztsnr$|global_step$",
            # Noise schedules and losses of training.
            r"betas$|alphas_cumprod|sqrt_|log_one_minus_|posterior_|lvlb_weights$|logvar$|scale_factor$|denoiser\.",
            r"loss\.|first_stage_model\.loss\.|embedding_manager\.",
            # What CLIP has beside the text model, or OpenCLIP beside its transformer.
            r"(cond_stage_model|conditioner\.embedders\.[01])\.(model\.|transformer\.)?(logit_scale|attn_mask)$",
            r"(cond_stage_model|conditioner\.embedders\.0)\.(transformer\.)?(text_projection|visual_projection)(\.weight)?$",
            r"cond_stage_model\.transformer\.vision_model\.",
            # OpenCLIP's projection and last layer, which SD 2.x does not use.
            r"cond_stage_model\.model\.(text_projection$|transformer\.resblocks\.23\.)",
        )
    )
)

_OPEN_CLIP = (
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm", "ln_final"),
    ("text_projection.weight", "text_projection"),
    ("self_attn.out_proj", "attn.out_proj"),
    ("layer_norm", "ln_"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
)
_OPEN_CLIP_QKV = re.compile(r"(.+)\.self_attn\.([qkv])_proj\.(weight|bias)")

_VAE = (
    (re.compile(r"down_blocks\.(\d+)\.resnets"), r"down.\1.block"),
    (re.compile(r"down_blocks\.(\d+)\.downsamplers\.0"), r"down.\1.downsample"),
    (re.compile(r"up_blocks\.(\d+)\.resnets"), r"up.\1.block"),
    (re.compile(r"up_blocks\.(\d+)\.upsamplers\.0"), r"up.\1.upsample"),
    (re.compile(r"mid_block\.attentions\.0\.group_norm"), "mid.attn_1.norm"),
    (re.compile(r"mid_block\.attentions\.0\.to_([qkv])"), r"mid.attn_1.\1"),
    (re.compile(r"mid_block\.attentions\.0\.to_out\.0"), "mid.attn_1.proj_out"),
    (re.compile("mid_block.resnets.0"), "mid.block_1"),
    (re.compile("mid_block.resnets.1"), "mid.block_2"),
    (re.compile("conv_shortcut"), "nin_shortcut"),
    (re.compile("conv_norm_out"), "norm_out"),
)
_VAE_UP = re.compile(r"up\.(\d+)\.")
_VAE_ATTENTION = re.compile(r"mid\.attn_1\.(q|k|v|proj_out)\.weight$")


def is_harmless(name: str) -> bool:
    """Whether a tensor is known, and no part of a base model as it is used."""
    return _HARMLESS.match(name) is not None


def original_shapes(shapes: Shapes, naming: Naming) -> dict[str, tuple[int, ...]]:
    """Tensors of a UNet or text encoder as originals name and shape them, from diffusers' names."""
    return _NAMINGS[naming](shapes)


def original_vae_shapes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Tensors of a VAE as originals name and shape them: attention as 1×1 convolutions."""
    levels = 1 + max(int(match[1]) for name in shapes if (match := re.search(r"up_blocks\.(\d+)\.", name)))
    renamed = {}
    for name, shape in shapes.items():
        for pattern, text in _VAE:
            name = pattern.sub(text, name)
        # Originals count the levels of the decoder from the finest.
        name = _VAE_UP.sub(lambda match: f"up.{levels - 1 - int(match[1])}.", name)
        renamed[name] = (*shape, 1, 1) if _VAE_ATTENTION.search(name) else shape
    return renamed


def vae_attention_as_conv(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The same tensors, with VAE attention that some tools store as matrices in its original shape."""
    return {
        name: (*shape, 1, 1) if len(shape) == 2 and _VAE_ATTENTION.search(name) else tuple(shape)
        for name, shape in shapes.items()
    }


def _sgm(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    names = sgm_names({name.rsplit(".", 1)[0] for name in shapes})
    return {f"{names[module]}.{leaf}": shapes[f"{module}.{leaf}"] for module, leaf in _split(shapes)}


def _split(shapes: Shapes) -> list[tuple[str, str]]:
    return [(name.rsplit(".", 1)[0], name.rsplit(".", 1)[1]) for name in shapes]


def _open_clip(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    renamed: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if match := _OPEN_CLIP_QKV.fullmatch(name):
            fused, shape = f"{match[1]}.attn.in_proj_{match[3]}", (3 * shape[0], *shape[1:])
        else:
            fused, shape = name, shape[::-1] if name == "text_projection.weight" else shape
        for ours, theirs in _OPEN_CLIP:
            fused = fused.replace(ours, theirs)
        renamed[fused] = shape
    return renamed


_NAMINGS: Mapping[Naming, Callable[[Shapes], dict[str, tuple[int, ...]]]] = {
    "sgm": _sgm,
    "clip": dict,
    "open_clip": _open_clip,
}
