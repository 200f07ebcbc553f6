"""The kernels of convolutions by the names of layers: what a flattened change does not say of itself.

LyCORIS keeps LoHa and LoKr of a convolution as matrices over in·kh·kw, and so are the factors made of them.
Other programs build a convolution from the shape of the factors, so a file must have its kernel.
"""

from __future__ import annotations

import re

from difflora.adapter import Stack
from difflora.kinds import Full, LoHa, LoKr, LoRA

Kernel = tuple[int, ...]
"""(kh, kw) of a convolution, () of any other layer."""

_KERNELS: tuple[tuple[re.Pattern[str], Kernel], ...] = (
    (re.compile(r"unet\.(?:.+\.)?(?:conv1|conv2|conv_in|conv_out|(?:down|up)samplers\.\d+\.conv)"), (3, 3)),
    (re.compile(r"unet\..+\.conv_shortcut"), (1, 1)),
    (re.compile(r"transformer\.pos_embed\.proj"), (2, 2)),
)
_PROJECTION = re.compile(r"unet\..+\.proj_(?:in|out)")
_LINEAR_WIDTHS = (1024, 2048)
"""Widths of the text of SD 2.x and SDXL, whose projections around attention are linear; those of SD 1.x are
1×1 convolutions."""


def kernel_of(path: str, *, linear_projections: bool) -> Kernel:
    """The kernel of the layer at `path` in the bases that there are."""
    if _PROJECTION.fullmatch(path):
        return () if linear_projections else (1, 1)
    return next((kernel for pattern, kernel in _KERNELS if pattern.fullmatch(path)), ())


def has_linear_projections(stack: Stack) -> bool:
    """Whether adapters are of a base with linear proj_in and proj_out: by their family, or else by the width
    of the text that goes into their cross-attention."""
    for adapter, _ in stack:
        if adapter.meta.family == "sdxl":
            return True
        for path, kinds in adapter.modules.items():
            if path.endswith((".attn2.to_k", ".attn2.to_v")):
                widths = [_width(kind) for kind in kinds if isinstance(kind, LoRA | LoHa | LoKr | Full)]
                if any(width in _LINEAR_WIDTHS for width in widths):
                    return True
    return False


def _width(kind: LoRA | LoHa | LoKr | Full) -> int:
    shape = tuple(kind.diff.shape) if isinstance(kind, Full) else kind.extent
    return shape[1] if len(shape) > 1 else 0
