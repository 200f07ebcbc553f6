"""One change of a fused module from the changes of the modules above each other in it, exactly."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from difflora.errors import AdapterError
from difflora.kinds import BOFT, IA3, OFT, Bias, DoRA, Full, GLoRA, Kind, LoHa, LoKr, LoRA, ReadyOFT, Replace

K = TypeVar("K", bound=Kind)
Parts = Sequence[K | None]
Heights = Sequence[int]


def join(parts: Parts[Kind], heights: Heights) -> Kind:
    """The one change of a fused module whose parts, from top to bottom, are changed by `parts`.

    `heights` are the rows of each part; None stands for a part that is not changed. No number is rounded, so
    LoRAs or LoHas of different scale cannot be joined.

    - LoRA and LoHa of one `down`: their `up` above each other. Of several: all `down` above each other, and
      `up` block-diagonal, so that the rank is the sum of theirs.
    - Full, Bias, IA3 on the output axis: above each other, with zeros where a part is not changed.
    - Replace, DoRA on the output axis, GLoRA of one input change, OFT and BOFT of one block size and as many
      stages without constraint: above each other, where every part is changed.
    - LoKr: where all but the left factor is one; IA3 on the input axis: where all are the same.

    Raises AdapterError naming the kind and why it cannot be joined.
    """
    present = [part for part in parts if part is not None]
    names = sorted({part.name for part in present})
    if len(names) != 1:
        raise AdapterError(f"{' and '.join(names) or 'nothing'} cannot be one change of a fused module")
    rule = _RULES.get(type(present[0]))
    if rule is None:
        raise AdapterError(f"{names[0]} cannot be joined: its rows are no kind of their own")
    return rule(parts, heights)


def _lora(parts: Parts[LoRA], heights: Heights) -> LoRA:
    parts = [None if part is None else part.folded() for part in parts]
    present = [part for part in parts if part is not None]
    first = present[0]
    shared = all(_same(part.down, first.down) and _same(part.mid, first.mid) for part in present)
    if not shared and any(part.mid is not None for part in present):
        raise AdapterError("lora in Tucker form cannot be joined: the parts have kernels of their own")
    scale = _scale(present)
    biases = [None if part is None else part.bias for part in parts]
    bias = _above(biases, heights) if any(one is not None for one in biases) else None
    ups = [None if part is None else part.up for part in parts]
    if shared:
        return LoRA(first.down, _above(ups, heights), scale, first.mid, bias)
    downs = _stacked([part.down.flatten(1) for part in present])
    return LoRA(downs, _diagonal(ups, heights), scale, bias=bias)


def _loha(parts: Parts[LoHa], heights: Heights) -> LoHa:
    present = [part for part in parts if part is not None]
    first, scale = present[0], _scale(present)
    ups1 = [None if part is None else part.w1_a for part in parts]
    ups2 = [None if part is None else part.w2_a for part in parts]
    if any(part.t1 is not None for part in present):
        raise AdapterError("loha in Tucker form cannot be joined: only convolutions have it")
    if all(_same(part.w1_b, first.w1_b) and _same(part.w2_b, first.w2_b) for part in present):
        return LoHa(_above(ups1, heights), first.w1_b, _above(ups2, heights), first.w2_b, scale)
    # In both halves a part's columns meet its own rows alone, so their product does too.
    down1, down2 = (_stacked([part.w1_b for part in present]), _stacked([part.w2_b for part in present]))
    return LoHa(_diagonal(ups1, heights), down1, _diagonal(ups2, heights), down2, scale)


def _lokr(parts: Parts[LoKr], heights: Heights) -> LoKr:
    present = [part for part in parts if part is not None]
    first = present[0]
    names = ("w1_b", "w2", "w2_a", "w2_b", "t2")
    alike = all(_same(getattr(part, name), getattr(first, name)) for part in present for name in names)
    if not alike or len({part.scale for part in present}) > 1:
        raise AdapterError("lokr cannot be joined: the parts differ in more than their left factor")
    field = "w1" if first.w1 is not None else "w1_a"
    lefts = [None if part is None else getattr(part, field) for part in parts]
    width = present[0].extent[0] // next(left.shape[0] for left in lefts if left is not None)
    if any(height % width for height in heights):
        raise AdapterError(
            f"lokr cannot be joined: a part's height is no multiple of {width}, its right factor"
        )
    return replace(first, **{field: _above(lefts, [height // width for height in heights])})


def _dora(parts: Parts[DoRA], heights: Heights) -> DoRA:
    present = _all(parts)
    if not all(part.on_output for part in present):
        raise AdapterError(
            "dora on the input axis cannot be joined: its norms are over the rows of all parts"
        )
    inner: Any = join([part.inner for part in present], heights)
    return DoRA(inner, torch.cat([part.magnitude.flatten(1)[:, :1] for part in present]))


def _full(parts: Parts[Full], heights: Heights) -> Full:
    biases = [None if part is None else part.bias for part in parts]
    bias = _above(biases, heights) if any(one is not None for one in biases) else None
    return Full(_above([None if part is None else part.diff for part in parts], heights), bias)


def _replace(parts: Parts[Replace], heights: Heights) -> Replace:
    present = _all(parts)
    weights, biases = [part.weight for part in present], [part.bias for part in present]
    if any(
        (part.weight is None, part.bias is None) != (weights[0] is None, biases[0] is None)
        for part in present
    ):
        raise AdapterError(
            "replace cannot be joined: some parts replace the weight or the bias, and some do not"
        )
    return Replace(
        None if weights[0] is None else _above(weights, heights),
        None if biases[0] is None else _above(biases, heights),
    )


def _bias(parts: Parts[Bias], heights: Heights) -> Bias:
    return Bias(_above([None if part is None else part.bias for part in parts], heights))


def _ia3(parts: Parts[IA3], heights: Heights) -> IA3:
    present = [part for part in parts if part is not None]
    first = present[0]
    if not any(part.on_input for part in present):
        gains = [None if part is None else part.gain.flatten() for part in parts]
        return IA3(_above(gains, heights), on_input=False)
    alike = all(part.on_input and _same(part.gain, first.gain) for part in _all(parts))
    if not alike:
        raise AdapterError("ia3 on the input axis cannot be joined: the parts have gains of their own")
    return first


def _glora(parts: Parts[GLoRA], heights: Heights) -> GLoRA:
    present = _all(parts)
    first = present[0]
    names = ("input_down", "input_up", "mid")
    alike = all(_same(getattr(part, name), getattr(first, name)) for part in present for name in names)
    if not alike or len({part.scale for part in present}) > 1:
        raise AdapterError("glora cannot be joined: the parts change their inputs each in its own way")
    added = _lora([LoRA(part.down, part.up, part.scale, part.mid) for part in present], heights)
    return replace(first, down=added.down, up=added.up, scale=added.scale)


def _rotations(parts: Parts[OFT] | Parts[BOFT], heights: Heights) -> OFT | BOFT:
    present = _all(parts)
    name = present[0].name
    if any(part.constraint > 0 for part in present):
        raise AdapterError(
            f"{name} with a constraint cannot be joined: the constraint is on all its blocks together"
        )
    # OFT has its blocks along the first dimension, BOFT behind that of the stages.
    if len({(part.blocks.shape[:-3], part.blocks.shape[-1], part.rescale is None) for part in present}) > 1:
        raise AdapterError(
            f"{name} cannot be joined: the parts have blocks of different sizes or stages, or some a rescale"
        )
    blocks = torch.cat([part.blocks for part in present], dim=-3)
    rescales = [part.rescale for part in present if part.rescale is not None]
    return replace(present[0], blocks=blocks, rescale=torch.cat(rescales) if rescales else None)


def _ready_oft(parts: Parts[ReadyOFT], heights: Heights) -> ReadyOFT:
    present = _all(parts)
    if len({part.rotation.shape[1] for part in present}) > 1:
        raise AdapterError("oft_diag cannot be joined: the parts have blocks of different sizes")
    return ReadyOFT(torch.cat([part.rotation for part in present]))


_RULES: Mapping[type[Kind], Callable[[Any, Heights], Kind]] = {
    LoRA: _lora,
    LoHa: _loha,
    LoKr: _lokr,
    DoRA: _dora,
    Full: _full,
    Replace: _replace,
    Bias: _bias,
    IA3: _ia3,
    GLoRA: _glora,
    OFT: _rotations,
    BOFT: _rotations,
    ReadyOFT: _ready_oft,
}


def _all(parts: Parts[K]) -> list[K]:
    """Every part. Raises AdapterError if one is not changed."""
    present = [part for part in parts if part is not None]
    if len(present) < len(parts):
        raise AdapterError(
            f"{present[0].name} cannot be joined with a part that is not changed: it has no form that changes"
            " nothing"
        )
    return present


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None or a is b:
        return a is b
    alike = a.shape == b.shape and a.dtype == b.dtype and not (a.is_meta or b.is_meta)
    return alike and torch.equal(a, b)


def _scale(present: Sequence[LoRA] | Sequence[LoHa]) -> float:
    """The scale of all parts. Raises AdapterError if they differ."""
    scales = sorted({part.scale for part in present})
    if len(scales) > 1:
        shown = ", ".join(f"{scale:g}" for scale in scales)
        raise AdapterError(f"{present[0].name} cannot be joined: the parts have the scales {shown}")
    return scales[0]


def _dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """That of all, or float32, which holds each of them exactly."""
    found = {tensor.dtype for tensor in tensors}
    return found.pop() if len(found) == 1 else torch.float32


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    dtype = _dtype(tensors)
    return torch.cat([tensor.to(dtype) for tensor in tensors])


def _above(parts: Sequence[Tensor | None], heights: Heights) -> Tensor:
    """The parts from top to bottom, zeros for those that are missing."""
    present = [part for part in parts if part is not None]
    first, dtype = present[0], _dtype(present)
    pairs = zip(parts, heights, strict=True)
    return torch.cat(
        [
            first.new_zeros((height, *first.shape[1:]), dtype=dtype) if part is None else part.to(dtype)
            for part, height in pairs
        ]
    )


def _diagonal(parts: Sequence[Tensor | None], heights: Heights) -> Tensor:
    """The parts from top to bottom, each in columns of its own."""
    present = [part.flatten(1) for part in parts if part is not None]
    total = present[0].new_zeros(
        (sum(heights), sum(part.shape[1] for part in present)), dtype=_dtype(present)
    )
    row = column = 0
    for part, height in zip(parts, heights, strict=True):
        if part is not None:
            total[row : row + height, column : column + part.shape[1]] = part.flatten(1)
            column += part.shape[1]
        row += height
    return total
