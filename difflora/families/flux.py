"""Flux.1 (dev, schnell and what is made from them): a transformer without a UNet, CLIP-L and T5-XXL."""

from difflora.families.family import Component, Family, Original, TextSpec

FLUX = Family(
    name="flux",
    title="Flux.1",
    components=(
        Component(
            "transformer",
            "lora_unet",
            is_text=False,
            originals=(Original("model.diffusion_model.", "bfl"),),
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
            # T5 is the third encoder for kohya here too, and the second for OneTrainer.
            "lora_te3",
            is_text=True,
            originals=(Original("text_encoders.t5xxl.transformer.", "t5"),),
            kohya_aliases=("lora_te2", "t5", "t5xxl_transformer", "text_encoders_t5xxl_transformer"),
        ),
    ),
    variants=("flux",),
    pipeline_class="FluxPipeline",
    text=TextSpec(default_skip=0, final_norm=True, pooled_from="text_encoder"),
    marker="model.diffusion_model.double_blocks.0.img_attn.qkv.weight",
    kohya_uses_originals=True,
    vae_overflows=False,
    gpu_dtype="bfloat16",
    loads=False,
)
