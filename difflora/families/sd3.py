"""Stable Diffusion 3 and 3.5, medium and large: a transformer without a UNet, CLIP-L, CLIP-G and T5-XXL."""

from difflora.families.family import Component, Family, Original, Special, TextSpec
from difflora.families.spellings import swapped

SD3 = Family(
    name="sd3",
    title="Stable Diffusion 3 and 3.5",
    components=(
        Component(
            "transformer",
            "lora_unet",
            is_text=False,
            originals=(Original("model.diffusion_model.", "mmdit"),),
        ),
        Component(
            "text_encoder",
            "lora_te1",
            is_text=True,
            originals=(Original("text_encoders.clip_l.transformer.", "clip"),),
            kohya_aliases=("lora_te", "clip_l", "clip_l_transformer", "text_encoders_clip_l_transformer"),
        ),
        Component(
            "text_encoder_2",
            "lora_te2",
            is_text=True,
            originals=(Original("text_encoders.clip_g.transformer.", "clip"),),
            kohya_aliases=("clip_g", "clip_g_transformer", "text_encoders_clip_g_transformer"),
        ),
        Component(
            "text_encoder_3",
            "lora_te3",
            is_text=True,
            originals=(Original("text_encoders.t5xxl.transformer.", "t5"),),
            kohya_aliases=("t5", "t5xxl_transformer", "text_encoders_t5xxl_transformer"),
        ),
    ),
    variants=("sd3-medium", "sd35-medium", "sd35-large"),
    pipeline_class="StableDiffusion3Pipeline",
    text=TextSpec(default_skip=1, final_norm=False, pooled_from="text_encoder"),
    marker="model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",
    kohya_uses_originals=True,
    vae_overflows=False,
    gpu_dtype="bfloat16",
    # Block 23 is the last of the medium models, 1536 wide, and one like the others in the large one.
    specials=(
        Special(
            "joint_blocks.23.context_block.adaLN_modulation.1",
            rows=3072,
            slices=swapped("transformer_blocks.23.norm1_context.linear"),
        ),
    ),
    loads=False,
)
