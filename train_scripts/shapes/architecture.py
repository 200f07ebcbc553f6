"""The untrained models of the base: Stable Diffusion's architecture in small, weights drawn from a seed.

128×128 pixels become 16×16 latents of four channels, and prompts up to 32 tokens of 128 numbers each.
"""

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

EDGE = 128
TOKENS = 32
TEXT_WIDTH = 128
LIBRARY: Any = diffusers  # its annotations contradict its own defaults
CLIP_EDGE = 64  # the image encoder sees scenes at half their size


def new_vae(seed: int) -> Any:
    """Eight pixels a latent. Groups of norms hold 16 channels or more: with fewer, flat colours are lost."""
    torch.manual_seed(seed)
    return LIBRARY.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 96, 96),
        layers_per_block=1,
        norm_num_groups=2,
        sample_size=EDGE,
        mid_block_add_attention=False,
    )


def new_unet(seed: int) -> Any:
    """Three levels, cross-attention on the two finer ones and in the middle; 8.8 million parameters.

    Its attention is written out: SDPA's backward took 38 % of a step on the CPU (0.40 s against 0.23 s).
    """
    torch.manual_seed(seed)
    unet = LIBRARY.UNet2DConditionModel(
        sample_size=EDGE // 8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    unet.set_attn_processor(AttnProcessor())
    return unet


def new_clip(tokenizer: Any, seed: int) -> Any:
    """Text and image encoder of equal width that share a space of `TEXT_WIDTH` dimensions."""
    torch.manual_seed(seed)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=CLIP_EDGE,
        patch_size=8,
    )
    clip = CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=TEXT_WIDTH)
    )
    clip.set_attn_implementation("eager")  # as for the UNet
    return clip


def new_scheduler() -> Any:
    """Stable Diffusion's noise schedule, rescaled to zero terminal SNR, for predicting velocity."""
    return LIBRARY.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def load_tokenizer(base: Path) -> Any:
    """The world's byte-pair vocabulary, which is data of the base and not trained anew."""
    return CLIPTokenizer.from_pretrained(base / "tokenizer", local_files_only=True)


def assemble(*, vae: Any, text_encoder: Any, tokenizer: Any, unet: Any) -> Any:
    """The parts as one pipeline, without safety checker and without a progress bar of its own."""
    pipeline = LIBRARY.StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
