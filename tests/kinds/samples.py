"""A random valid instance of every kind, in several variants, for any layer."""

from collections.abc import Callable, Mapping
from math import prod

import torch
from torch import Tensor

from difflora.kinds import (
    BOFT,
    IA3,
    OFT,
    Bias,
    DoRA,
    Full,
    GLoRA,
    Kind,
    LoHa,
    LoKr,
    LoRA,
    Norm,
    ReadyOFT,
    Replace,
)

RANK = 3
SCALE = 0.5
Shape = tuple[int, ...]


class Draw:
    """Random tensors of one dtype for a layer whose weight has the shape `shape`."""

    def __init__(self, shape: Shape, dtype: torch.dtype, seed: int) -> None:
        self.shape, self.dtype = shape, dtype
        self.generator = torch.Generator().manual_seed(seed)
        self.out = shape[0]
        self.inputs = shape[1] if len(shape) > 1 else 1
        self.kernel = shape[2:]
        self.rest = prod(shape[1:])

    def __call__(self, *shape: int, std: float = 0.3) -> Tensor:
        return (torch.randn(shape, generator=self.generator) * std).to(self.dtype)

    def positive(self, *shape: int) -> Tensor:
        """Between 0.8 and 1.2."""
        return (0.8 + 0.4 * torch.rand(shape, generator=self.generator)).to(self.dtype)

    def one_by_one(self, out: int, inputs: int) -> Tensor:
        """The factor of a linear layer, or of a 1×1 convolution if the layer is one of any kernel."""
        return self(out, inputs, *[1] * len(self.kernel))


def lora(draw: Draw) -> LoRA:
    return LoRA(draw(RANK, *draw.shape[1:]), draw.one_by_one(draw.out, RANK), SCALE)


def lora_bias(draw: Draw) -> LoRA:
    return LoRA(draw(RANK, *draw.shape[1:]), draw.one_by_one(draw.out, RANK), SCALE, bias=draw(draw.out))


def lora_tucker(draw: Draw) -> LoRA:
    kernel = draw.kernel or (1, 1)
    down, up = draw(RANK, draw.inputs, 1, 1), draw(draw.out, RANK, 1, 1)
    return LoRA(down, up, SCALE, mid=draw(RANK, RANK, *kernel))


def loha(draw: Draw) -> LoHa:
    halves = [part for _ in range(2) for part in (draw(draw.out, RANK), draw(RANK, draw.rest))]
    return LoHa(*halves, SCALE)


def loha_tucker(draw: Draw) -> LoHa:
    kernel = draw.kernel or (1, 1)
    halves = [part for _ in range(2) for part in (draw(RANK, draw.out), draw(RANK, draw.inputs))]
    return LoHa(*halves, SCALE, draw(RANK, RANK, *kernel), draw(RANK, RANK, *kernel))


def lokr(draw: Draw) -> LoKr:
    (o1, o2), (i1, i2) = _split(draw.out), _split(draw.inputs)
    flat = i2 * prod(draw.kernel)
    return LoKr(scale=SCALE, w1=draw(o1, i1), w2_a=draw(o2, RANK), w2_b=draw(RANK, flat))


def lokr_full(draw: Draw) -> LoKr:
    (o1, o2), (i1, i2) = _split(draw.out), _split(draw.inputs)
    return LoKr(w1=draw(o1, i1), w2=draw(o2, i2, *draw.kernel))


def lokr_both(draw: Draw) -> LoKr:
    (o1, o2), (i1, i2) = _split(draw.out), _split(draw.inputs)
    flat = i2 * prod(draw.kernel)
    return LoKr(
        scale=SCALE,
        w1_a=draw(o1, RANK),
        w1_b=draw(RANK, i1),
        w2_a=draw(o2, RANK),
        w2_b=draw(RANK, flat),
    )


def lokr_tucker(draw: Draw) -> LoKr:
    (o1, o2), (i1, i2) = _split(draw.out), _split(draw.inputs)
    mid = draw(RANK, RANK, *(draw.kernel or (1, 1)))
    return LoKr(scale=SCALE, w1=draw(o1, i1), w2_a=draw(RANK, o2), w2_b=draw(RANK, i2), t2=mid)


def dora_out(draw: Draw) -> DoRA:
    return DoRA(lora(draw), _row_norms(draw))


def dora_in(draw: Draw) -> DoRA:
    norms = (
        draw.positive(1, draw.inputs, *[1] * len(draw.kernel)) * (draw.shape[0] * prod(draw.kernel)) ** 0.5
    )
    return DoRA(lora(draw), norms)


def dora_loha(draw: Draw) -> DoRA:
    return DoRA(loha(draw), _row_norms(draw))


def dora_lokr(draw: Draw) -> DoRA:
    return DoRA(lokr(draw), _row_norms(draw))


def glora(draw: Draw) -> GLoRA:
    return GLoRA(
        input_down=draw.one_by_one(RANK, draw.inputs),
        input_up=draw.one_by_one(draw.inputs, RANK),
        down=draw(RANK, *draw.shape[1:]),
        up=draw.one_by_one(draw.out, RANK),
        scale=SCALE,
    )


def glora_tucker(draw: Draw) -> GLoRA:
    kernel = draw.kernel or (1, 1)
    return GLoRA(
        input_down=draw.one_by_one(RANK, draw.inputs),
        input_up=draw.one_by_one(draw.inputs, RANK),
        down=draw(RANK, draw.inputs, 1, 1),
        up=draw(draw.out, RANK, 1, 1),
        scale=SCALE,
        mid=draw(RANK, RANK, *kernel),
    )


def ia3_out(draw: Draw) -> IA3:
    return IA3(draw(*_channels(draw, draw.out)), on_input=False)


def ia3_in(draw: Draw) -> IA3:
    return IA3(draw(*_channels(draw, draw.inputs)), on_input=True)


def full(draw: Draw) -> Full:
    return Full(draw(*draw.shape))


def full_bias(draw: Draw) -> Full:
    return Full(draw(*draw.shape), draw(draw.out))


def replace(draw: Draw) -> Replace:
    return Replace(draw(*draw.shape))


def replace_bias(draw: Draw) -> Replace:
    return Replace(draw(*draw.shape), draw(draw.out))


def norm(draw: Draw) -> Norm:
    return Norm(draw(draw.out))


def norm_bias(draw: Draw) -> Norm:
    return Norm(draw(draw.out), draw(draw.out))


def oft(draw: Draw) -> OFT:
    count, size = _split(draw.out)
    return OFT(draw(count, size, size))


def coft(draw: Draw) -> OFT:
    count, size = _split(draw.out)
    return OFT(draw(count, size, size), constraint=0.01)


def oft_rescaled(draw: Draw) -> OFT:
    count, size = _split(draw.out)
    return OFT(draw(count, size, size), rescale=_rows(draw))


def oft_diag(draw: Draw) -> ReadyOFT:
    count, size = _split(draw.out)
    noise = draw(count, size, size).float()
    return ReadyOFT(torch.linalg.qr(noise).Q.contiguous().to(draw.dtype))


def boft(draw: Draw) -> BOFT:
    return BOFT(draw(*_butterfly(draw.out)))


def boft_rescaled(draw: Draw) -> BOFT:
    return BOFT(draw(*_butterfly(draw.out)), constraint=0.01, rescale=_rows(draw))


def bias(draw: Draw) -> Bias:
    return Bias(draw(draw.out))


_MAKERS = (
    *(lora, lora_bias, lora_tucker, dora_out, dora_in, dora_loha, dora_lokr, loha, loha_tucker),
    *(lokr, lokr_full, lokr_both, lokr_tucker, glora, glora_tucker, ia3_out, ia3_in, full, full_bias),
    *(replace, replace_bias, norm, norm_bias, oft, coft, oft_rescaled, oft_diag, boft, boft_rescaled, bias),
)
MAKERS: Mapping[str, Callable[[Draw], Kind]] = {maker.__name__: maker for maker in _MAKERS}

NORM_NAMES = ("norm", "norm_bias", "full", "full_bias", "replace", "replace_bias", "bias")
"""The variants that a norm, whose weight is a vector, can have."""
LAYER_NAMES = tuple(name for name in MAKERS if not name.startswith("norm"))
"""The variants that a linear or convolution layer can have; BOFT needs an even number of output rows."""


def sample(kind_name: str, shape: Shape, dtype: torch.dtype = torch.float32, seed: int = 0) -> Kind:
    """A random valid change of a layer whose weight has this shape; the same for the same arguments.

    `kind_name` is a name of MAKERS. The magnitudes of DoRA are those of a weight of standard deviation 1.
    """
    return MAKERS[kind_name](Draw(shape, dtype, seed))


def _split(size: int) -> tuple[int, int]:
    """Two factors of `size` as close as can be, the smaller first."""
    small = next(part for part in range(int(size**0.5), 0, -1) if size % part == 0)
    return small, size // small


def _butterfly(out: int) -> Shape:
    """Blocks of two rows in as many stages as the rows allow, three at most."""
    if out % 2:
        raise ValueError(f"BOFT needs an even number of output rows, got {out}")
    stages = next(count for count in (3, 2, 1) if out % 2**count == 0)
    return (stages, out // 2, 2, 2)


def _channels(draw: Draw, channels: int) -> Shape:
    return (channels,) if not draw.kernel else (1, channels, 1, 1)


def _rows(draw: Draw) -> Tensor:
    return draw.positive(draw.out, *[1] * (len(draw.shape) - 1))


def _row_norms(draw: Draw) -> Tensor:
    return _rows(draw) * draw.rest**0.5
