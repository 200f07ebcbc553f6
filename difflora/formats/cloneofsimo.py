"""The first LoRA files there were, of cloneofsimo's `lora`: numbered layers. Read only.

    unet:0:up  unet:0:down  text_encoder:3:up ...  <s1>  (a word)

Layer N is the N-th linear layer (or convolution) found inside modules of the classes that the metadata lists,
in the order in which the model of early 2023 had them. There is no alpha: the scale is in `up`.
Source: `lora_diffusion/lora.py` of github.com/cloneofsimo/lora, whose order of layers this repeats.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

from difflora.adapter import Adapter
from difflora.errors import AdapterFileError
from difflora.families import Family
from difflora.families.family import path_table
from difflora.formats.format import DOWN, UP, Encoded, Format, Metadata, Part, Parts, parts_in

_NAME = re.compile(r"(unet|text_encoder):(\d{1,5}):(up|down)")
_LEAVES = {"up": UP, "down": DOWN}
_VARIANTS = ("sd15", "sd2")  # of which the layers that count are the same; the text encoders differ in length

# Class -> the layers inside it. A feed-forward's first layer is inside a GEGLU, its second is not.
_ATTENTION = r"(?P<module>.+\.attn[12])\.to_(q|k|v|out\.0)"
_INSIDE = {
    "CrossAttention": _ATTENTION,
    "Attention": _ATTENTION,
    "GEGLU": r"(?P<module>.+\.ff\.net\.0)\.proj",
    "ResnetBlock2D": r"(?P<module>.+\.resnets\.\d+)\.(conv1|time_emb_proj|conv2|conv_shortcut)",
    "CLIPAttention": r"(?P<module>.+\.self_attn)\.(k|v|q|out)_proj",
}


class Cloneofsimo(Format):
    """Numbered layers of Stable Diffusion 1 and 2."""

    name: ClassVar[str] = "cloneofsimo"
    title: ClassVar[str] = "cloneofsimo file"
    is_written: ClassVar[bool] = False

    @classmethod
    def recognises(cls, names: Collection[str], metadata: Metadata) -> bool:
        """Whether any name is a component, a number and a factor."""
        return any(_NAME.fullmatch(name) for name in names)

    @classmethod
    def part(cls, name: str) -> Part | None:
        """Only the whole file tells which layer a number is: see `parts`."""
        return None

    @classmethod
    def parts(cls, shapes: Mapping[str, tuple[int, ...]], metadata: Metadata) -> Parts:
        """Every tensor name taken apart, with numbers made paths.

        Raises ValueError if the layers of no known model are as many, or of such shapes.
        """
        found = {name: match for name in shapes if (match := _NAME.fullmatch(name))}
        paths: dict[str, Sequence[str]] = {}
        for component in sorted({match[1] for match in found.values()}):
            ups = {int(match[2]): shapes[name] for name, match in found.items()
                   if match[1] == component and match[3] == "up"}  # fmt: skip
            paths[component] = _layers(component, ups, metadata)
        return parts_in(
            {
                name: Part(paths[match[1]][int(match[2])], _LEAVES[match[3]])
                if (match := found.get(name)) and int(match[2]) < len(paths[match[1]])
                else None
                for name in shapes
            }
        )

    @classmethod
    def encode(cls, adapter: Adapter, family: Family) -> Encoded:
        """Nothing: raises AdapterFileError."""
        raise AdapterFileError(
            "cloneofsimo files are only read; write the adapter as kohya, diffusers or peft"
        )


def _layers(component: str, ups: Mapping[int, tuple[int, ...]], metadata: Metadata) -> Sequence[str]:
    """The path of each numbered layer, given the shapes of their up factors."""
    classes = _classes(component, metadata)
    candidates = {
        tuple(_walk(component, path_table(variant), classes, feed_forward_first=first))
        for variant in _VARIANTS
        for first in (True, False)
    }
    fitting = [paths for paths in sorted(candidates) if len(paths) == len(ups) and _plausible(paths, ups)]
    if len(fitting) != 1:
        counts = sorted({len(paths) for paths in candidates})
        raise ValueError(
            f"it has {len(ups)} layers of the {component} inside {', '.join(classes)}, in an order that is "
            f"not known; expected {' or '.join(map(str, counts))}, as Stable Diffusion 1 or 2 has"
        )
    return fitting[0]


def _classes(component: str, metadata: Metadata) -> Sequence[str]:
    try:
        classes = json.loads(metadata.get(component, "null"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its list of classes of the {component} is not JSON") from error
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"it does not list the classes of the {component} that it changes")
    if unknown := sorted(set(classes) - _INSIDE.keys()):
        raise ValueError(f"it changes layers inside {unknown[0][:60]}; expected {', '.join(_INSIDE)}")
    return sorted(classes)


def _walk(
    component: str, table: Sequence[str], classes: Sequence[str], *, feed_forward_first: bool
) -> list[str]:
    """The layers inside modules of the classes, in the model's order.

    Until the spring of 2023 diffusers had the feed-forward before the second attention.
    """
    patterns = [re.compile(_INSIDE[name]) for name in classes]
    inside = [path for path in table if path.startswith(f"{component}.")]
    found = list(dict.fromkeys(path for path in inside if any(one.fullmatch(path) for one in patterns)))
    if not feed_forward_first:
        return found
    blocks: dict[str, list[str]] = {}
    for path in found:
        block = re.sub(r"\.(attn[12]|ff)\..+", "", path)
        blocks.setdefault(block, []).append(path)
    ranks = {"attn1": 0, "ff": 1, "attn2": 2}
    for block, paths in blocks.items():
        paths.sort(key=lambda path: ranks.get(path.removeprefix(f"{block}.").split(".")[0], 0))
    return [path for paths in blocks.values() for path in paths]


def _plausible(paths: Sequence[str], ups: Mapping[int, tuple[int, ...]]) -> bool:
    """Whether the widths of the layers fit: a GEGLU is 8 times as wide as the attention beside it."""
    if sorted(ups) != list(range(len(paths))):
        return False
    heights = {path: ups[index][0] for index, path in enumerate(paths) if ups[index]}
    for path, height in heights.items():
        block, is_gate, _ = path.partition(".ff.net.0.")
        query = heights.get(f"{block}.attn1.to_q")
        if is_gate and query is not None and height != 8 * query:
            return False
    return True
