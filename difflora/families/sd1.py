"""Stable Diffusion 1.x and 2.x, and small models of the same make."""

from difflora.families.family import Component, Family, Original, TextSpec

SD1 = Family(
    name="sd1",
    title="Stable Diffusion 1.x and 2.x",
    components=(
        Component("unet", "lora_unet", is_text=False, originals=(Original("model.diffusion_model.", "sgm"),)),
        Component(
            "text_encoder",
            "lora_te",
            is_text=True,
            originals=(
                Original("cond_stage_model.transformer.", "clip"),
                Original("cond_stage_model.model.", "open_clip"),
            ),
            kohya_aliases=(
                "lora_te1",
                "clip_l",
                "clip_l_transformer",
                "text_encoders_clip_l_transformer",
                "text_encoders_clip_h_transformer",
            ),
        ),
    ),
    variants=("sd15", "sd2"),
    pipeline_class="StableDiffusionPipeline",
    # The layer that SD 2.x leaves out is not in its files at all, so the last one there is is taken.
    text=TextSpec(default_skip=0, final_norm=True, pooled_from=None),
    marker="model.diffusion_model.input_blocks.11.0.in_layers.0.weight",
    kohya_uses_originals=False,
    vae_overflows=False,
    gpu_dtype="float16",
)
