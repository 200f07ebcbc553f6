"""What `difflora show` says of a base model."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from difflora.errors import ConfigError
from difflora.families import Model
from difflora.inject import TARGETS, NetworkOptions, targets

# What stands before a layer's name inside its block.
_BLOCK = re.compile(r".*\.(?:transformer_blocks|layers|attentions|resnets)\.\d+\.")


def model_document(model: Model) -> dict[str, Any]:
    """The facts of a base, and the parameters of its components, as plain values."""
    parts = {part.name: _parameters(model.component(part.name)) for part in model.family.components}
    return {**asdict(model.facts), "parameters": parts}


def model_lines(model: Model, *, rank: int) -> list[str]:
    """The facts of a base, what each target preset trains in it, and the shapes of the smallest of them."""
    facts = model.facts
    snr = " with zero terminal SNR" if facts.zero_terminal_snr else ""
    parts = {part.name: _parameters(model.component(part.name)) for part in model.family.components}
    sizes = ", ".join(f"{name} {number / 1e6:.1f} M" for name, number in parts.items())
    lines = [
        f"{facts.name}: {model.family.title}",
        f"  family      {facts.family}, variant {facts.variant}",
        f"  predicts    {facts.prediction_type}{snr}",
        f"  resolution  {facts.resolution} px",
        f"  parameters  {sizes}",
        "",
        f"layers that each target trains at rank {rank}, and their share of the base's parameters:",
        *_table(_preset_rows(model, rank)),
        "",
        *_shape_lines(model, "attn+ff"),
        "",
        "`--targets attn` (or any target or pattern) lists the layers.",
    ]
    return lines


def layer_lines(model: Model, *, targets: str, rank: int) -> list[str]:
    """Every layer that `targets` select, with its shape, and the parameters of its factors."""
    paths = _selected(model, targets)
    shapes = model.shapes()
    rows = [(path, _shape(shapes[path]), f"{_factor_size(shapes[path], rank):,}") for path in paths]
    total = sum(_factor_size(shapes[path], rank) for path in paths)
    heading = (
        f"{targets} selects {len(paths)} layers of {model.facts.name}; {total:,} parameters at rank {rank}:"
    )
    return [heading, *_table([("layer", "shape", "parameters"), *rows])]


def _preset_rows(model: Model, rank: int) -> list[tuple[str, ...]]:
    whole = sum(_parameters(model.component(part.name)) for part in model.family.components)
    rows: list[tuple[str, ...]] = [("targets", "unet", "text encoders", "unet share", "with text")]
    for name in TARGETS:
        paths = _selected(model, name)
        unet = [path for path in paths if path.startswith("unet.")]
        sizes = {path: _factor_size(model.shapes()[path], rank) for path in paths}
        share, both = sum(sizes[path] for path in unet) / whole, sum(sizes.values()) / whole
        rows.append((name, str(len(unet)), str(len(paths) - len(unet)), f"{share:.2%}", f"{both:.2%}"))
    return rows


def _selected(model: Model, name: str) -> tuple[str, ...]:
    if not name.strip():
        raise ConfigError(
            f"targets={name!r}: give one of {', '.join(TARGETS)}, or a pattern over layer paths"
        )
    return targets(model, NetworkOptions.model_validate({"targets": name, "train_text_encoder": True}))


def _shape_lines(model: Model, name: str) -> list[str]:
    grouped: Mapping[tuple[int, ...], list[str]] = defaultdict(list)
    for path in _selected(model, name):
        grouped[model.shapes()[path]].append(path)
    rows = [
        (str(len(paths)), _shape(shape), _leaves(paths))
        for shape, paths in sorted(grouped.items(), key=lambda item: -len(item[1]))
    ]
    return [f"shapes of {name}:", *_table([("layers", "shape", "what"), *rows])]


def _leaves(paths: Iterable[str]) -> str:
    """What the layers are, without where they are: `unet attn1.to_q, attn1.to_k`."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        component, inner = path.split(".", 1)
        leaf = _BLOCK.split(inner)[-1]
        if leaf not in kinds[component]:
            kinds[component].append(leaf)
    return "; ".join(f"{component}: {', '.join(leaves)}" for component, leaves in kinds.items())


def _parameters(component: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in component.parameters())


def _factor_size(shape: Sequence[int], rank: int) -> int:
    """Numbers in the two factors of one layer: down (rank, in...) and up (out, rank)."""
    return rank * (shape[0] + math.prod(shape[1:]))


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text with their columns aligned, the first row as their heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
