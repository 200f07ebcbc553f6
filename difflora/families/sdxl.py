"""Stable Diffusion XL: two text encoders, a pooled embedding, and time ids for size and crop."""

from difflora.families.family import Component, Family, Original, TextSpec

SDXL = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    components=(
        Component("unet", "lora_unet", is_text=False, originals=(Original("model.diffusion_model.", "sgm"),)),
        Component(
            "text_encoder",
            "lora_te1",
            is_text=True,
            originals=(Original("conditioner.embedders.0.transformer.", "clip"),),
            kohya_aliases=("clip_l", "clip_l_transformer", "text_encoders_clip_l_transformer"),
        ),
        Component(
            "text_encoder_2",
            "lora_te2",
            is_text=True,
            originals=(Original("conditioner.embedders.1.model.", "open_clip"),),
            kohya_aliases=("clip_g", "clip_g_transformer", "text_encoders_clip_g_transformer"),
        ),
    ),
    variants=("sdxl",),
    pipeline_class="StableDiffusionXLPipeline",
    text=TextSpec(default_skip=1, final_norm=False, pooled_from="text_encoder_2"),
    marker="conditioner.embedders.1.model.positional_embedding",
    # A1111 finds SDXL modules under these names only.
    kohya_uses_originals=True,
    vae_overflows=True,
    gpu_dtype="bfloat16",
)
