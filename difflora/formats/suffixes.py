"""What follows a module's name in the name of a tensor: every spelling of every trainer, and its leaf."""

import re

from difflora.formats.format import ALPHA, DOWN, UP, Part
from difflora.formats.leaves import LEAVES, MAGNITUDE, REFUSED, UP_BIAS

# After a dotted name; the first that fits counts.
_SUFFIXES = {
    ".lora_A.weight": DOWN,  # PEFT and diffusers
    ".lora_B.weight": UP,
    ".lora_B.bias": UP_BIAS,
    ".lora_magnitude_vector": MAGNITUDE,
    ".lora_down.weight": DOWN,  # OneTrainer
    ".lora_up.weight": UP,
    ".alpha": ALPHA,
    ".lora_linear_layer.down.weight": DOWN,  # text encoders of old diffusers
    ".lora_linear_layer.up.weight": UP,
    "_lora.down.weight": DOWN,  # its attention processors
    "_lora.up.weight": UP,
    ".lora.down.weight": DOWN,
    ".lora.up.weight": UP,
    ".bias.set_weight": "set_bias",  # ComfyUI names a parameter where the others name a module
    ".bias.diff": "diff_b",
    **{
        f".{leaf}": leaf
        for leaf in sorted(LEAVES | REFUSED.keys())
        if leaf not in {"weight", "bias", "scale"}
    },
    ".down.weight": DOWN,  # XLabs
    ".up.weight": UP,
    ".down": DOWN,  # Stability's Control-LoRA
    ".up": UP,
}

# The adapter's own name left in, as in "lora_A.default.weight", or no ".weight", as Mochi has it.
_NAMED = re.compile(r"(.+?)\.lora_(A|B|magnitude_vector)(?:\.\w+)?(\.weight|\.bias)?")
_NAMED_LEAVES = {"A": DOWN, "B": UP, "magnitude_vector": MAGNITUDE}

_FLATTENED = {suffix[1:]: leaf for suffix, leaf in _SUFFIXES.items() if suffix.startswith(".")}


def dotted(name: str) -> Part | None:
    """A tensor's name whose module has dots, taken apart; None if it ends in no spelling of a leaf."""
    for suffix, leaf in _SUFFIXES.items():
        if name.endswith(suffix) and len(name) > len(suffix):
            return Part(name[: -len(suffix)], leaf)
    if match := _NAMED.fullmatch(name):
        return Part(match[1], UP_BIAS if match[3] == ".bias" else _NAMED_LEAVES[match[2]])
    return None


def flattened(name: str) -> Part | None:
    """A tensor's name whose module has no dots: what follows the first is the leaf.

    diffusers' own conversion to kohya's names leaves one dot in the modules of DoRA magnitudes.
    """
    module, _, rest = name.partition(".")
    if rest in LEAVES or rest in REFUSED:
        return Part(module, rest)
    return Part(module, _FLATTENED[rest]) if rest in _FLATTENED else dotted(name)
