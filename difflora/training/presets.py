"""Starting values for a purpose and a base: what the field's trainers have settled on, one row each.

The figures for SD 1.5 and SDXL follow the common ground of the published defaults of kohya's scripts,
OneTrainer, ai-toolkit and the diffusers examples; those for small bases were measured on the embedded one.
"""

from collections.abc import Mapping
from typing import Any

_STYLE: Mapping[str, Any] = {
    "targets": "attn+ff",
    "schedule": "cosine",
    "caption_dropout": 0.05,
}
_SUBJECT: Mapping[str, Any] = {
    "targets": "attn",
    "schedule": "constant",
    "train_text_encoder": True,
}
_SD: Mapping[str, Any] = {"resolution": 512, "learning_rate": 1e-4, "min_snr_gamma": 5.0}
_SDXL: Mapping[str, Any] = {
    "resolution": 1024,
    "learning_rate": 1e-4,
    "min_snr_gamma": 5.0,
    "gradient_checkpointing": True,
    "noise_offset": 0.0357,
    "train_text_encoder": False,
}
# A small UNet has little room in its attention, so convolutions are trained as well. In the minute that a
# demonstration has, many small batches at a high rate taught most.
_SMALL: Mapping[str, Any] = {
    "resolution": 128,
    "bucket_step": 16,
    "targets": "all",
    "rank": 32,
    "schedule": "cosine",
    "caption_dropout": 0.1,
    "batch_size": 4,
    "steps": 600,
    "warmup_steps": 20,
}

# preset -> variant of base -> values; later rows override earlier ones
PRESETS: Mapping[str, Mapping[str, tuple[Mapping[str, Any], ...]]] = {
    "style": {
        "sd15": (
            _STYLE,
            _SD,
            {"rank": 32, "alpha": 16.0, "steps": 2000, "batch_size": 2, "warmup_steps": 100},
        ),
        "sd2": (
            _STYLE,
            _SD,
            {"rank": 32, "alpha": 16.0, "steps": 2000, "batch_size": 2, "warmup_steps": 100},
        ),
        "sdxl": (_STYLE, _SDXL, {"rank": 32, "alpha": 16.0, "steps": 2000, "warmup_steps": 100}),
        "shapes": (_STYLE, _SMALL, {"learning_rate": 2e-3}),
    },
    "subject": {
        "sd15": (_SUBJECT, _SD, {"rank": 16, "alpha": 8.0, "steps": 1200, "text_learning_rate": 1e-5}),
        "sd2": (_SUBJECT, _SD, {"rank": 16, "alpha": 8.0, "steps": 1200, "text_learning_rate": 1e-5}),
        "sdxl": (_SUBJECT, _SDXL, {"rank": 32, "alpha": 16.0, "steps": 1200}),
        "shapes": (_SUBJECT, _SMALL, {"learning_rate": 3e-3, "text_learning_rate": 5e-4}),
    },
}


def preset_values(preset: str, variant: str) -> dict[str, Any]:
    """The option values of a preset for a variant of base (`sd15`, `sd2`, `sdxl`, `shapes`)."""
    values: dict[str, Any] = {}
    for row in PRESETS[preset][variant]:
        values |= row
    return values
