"""Alphas of kohya files where diffusers finds them.

diffusers (0.42) keeps the alphas of a kohya file under names by which it finds neither those of attention in
a UNet nor those of text encoders again. Such a module gets the alpha that most of its component have, with
the rank of its own: one of rank 4 among those of rank 12 = alpha acts three times as strongly.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from difflora.kinds import Bias, DoRA, Kind, LoRA
from difflora.kinds.parts import number

Modules = Mapping[str, tuple[Kind, ...]]

_NOT_FOUND = re.compile(r"unet\..*\.attn[12]\.to_(q|k|v|out\.0)|text_encoder.*")


def with_alphas_found(modules: Modules) -> Modules:
    """The same changes (by path) with one alpha for all LoRA whose alphas diffusers does not find, component
    by component, and for every LoRA of one where it would take another for the most common. What is left of
    a scale is in the factors, which are then float32.

    The very same modules where it takes each alpha as it is, and where a kind is neither LoRA nor a DoRA of
    one: it reads no such file, and the other readers find every alpha.
    """
    components: dict[str, dict[str, float]] = {}
    for path, kinds in modules.items():
        for kind in kinds:
            inner = kind.inner if isinstance(kind, DoRA) else kind
            if isinstance(inner, LoRA):
                components.setdefault(path.partition(".")[0], {})[path] = _alpha(inner)
            elif not isinstance(inner, Bias):
                return modules
    wanted = {path: alpha for alphas in components.values() for path, alpha in _found(alphas).items()}
    changed = {
        path: tuple(_with_alpha(kind, wanted[path]) for kind in modules[path])
        for alphas in components.values()
        for path, alpha in alphas.items()
        if wanted[path] != alpha
    }
    return {**modules, **changed} if changed else modules


def _found(alphas: Mapping[str, float]) -> dict[str, float]:
    """Path -> the alpha that diffusers has for it, if the file has these, of the modules of a component."""
    hidden = {path: alpha for path, alpha in alphas.items() if _NOT_FOUND.fullmatch(path)}
    usable = Counter(filter(None, hidden.values())) or Counter(filter(None, alphas.values()))
    if not hidden or not usable:
        return dict(alphas)
    common = max(usable, key=lambda alpha: (usable[alpha], alpha))
    wanted = {path: common if path in hidden else alpha for path, alpha in alphas.items()}
    counts = Counter(wanted.values())
    if any(counts[alpha] >= counts[common] for alpha in counts if alpha != common):
        return dict.fromkeys(alphas, common)
    return wanted


def _alpha(lora: LoRA) -> float:
    """As a file has it."""
    return float(number(lora.scale * lora.rank))


def _with_alpha(kind: Kind, alpha: float) -> Kind:
    if isinstance(kind, DoRA) and isinstance(kind.inner, LoRA):
        return replace(kind, inner=_lora_with_alpha(kind.inner, alpha))
    return _lora_with_alpha(kind, alpha) if isinstance(kind, LoRA) else kind


def _lora_with_alpha(lora: LoRA, alpha: float) -> LoRA:
    """Half of the factor, as a power of two, is in down: exact, and neither leaves the range of float16."""
    factor = lora.scale * lora.rank / alpha
    half = 2.0 ** round(math.log2(abs(factor)) / 2) if factor else 1.0
    whole = lora.folded()
    return replace(
        whole,
        down=whole.down.float() * half,
        up=whole.up.float() * (factor / half),
        scale=alpha / lora.rank,
        bias=None if lora.bias is None else lora.bias.float() * factor,
    )
