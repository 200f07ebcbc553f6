"""Pictures of latents while they are being denoised, at a cost that is not worth counting."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Self

import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from difflora.families.model import Model

_LEVELS = (-1.0, 0.0, 1.0)  # of each colour channel
_EDGE = 64


@dataclass(frozen=True, slots=True, eq=False)
class LatentColours:
    """The linear map from latents to colours that a VAE is nearest to: `weight` (4, 3) and `bias` (3,).

    One matrix product a picture, where decoding with the VAE costs as much as several denoising steps.
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, model: Model) -> Self:
        """The least-squares fit to what the model's VAE makes of plainly coloured pictures."""
        colours = torch.tensor(list(product(_LEVELS, repeat=3)))
        pixels = colours[:, :, None, None].expand(-1, -1, _EDGE, _EDGE)
        mean = torch.cat([model.encode_images(some)[0].cpu() for some in pixels.split(9)])
        inner = mean[:, :, 2:-2, 2:-2].mean(dim=(2, 3))  # edges look different to a convolution
        ones = torch.ones(len(inner), 1)
        solved = torch.linalg.lstsq(torch.cat([inner, ones], dim=1), colours, driver="gelsd").solution
        return cls(solved[:-1], solved[-1])

    def pictures(self, latents: Tensor) -> list[Image.Image]:
        """One picture a latent (4, h, w), w by h pixels, from latents (B, 4, h, w) at any noise level."""
        known = latents.detach().float().cpu()
        # What is foreseen of pure noise, or latents at the scale of their noise, can be of any size.
        known = known / known.std(dim=(1, 2, 3), keepdim=True).clamp(min=1)
        colours = torch.einsum("bchw,cd->bhwd", known, self.weight) + self.bias
        levels = ((colours + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return [Image.fromarray(one.numpy()) for one in levels]
