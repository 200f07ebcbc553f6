"""Adapters as numbers: a mix as one adapter, a smaller one, another format, a base with a mix in it; and
what becomes of the adapters of a mix, and how alike two adapters are."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pydantic import BaseModel, Field

from difflora import Adapter, bake, compare, heat_map, interference, load, merge, resize, write
from difflora.errors import ConfigError
from webui.work.desk import FROZEN, Desk, Done, Mixed

HEAT = "heat.png"
Name = Field(min_length=1, max_length=100, description="File name without extension.")
Dtype = Literal["float32", "float16"]
_NAME = re.compile(r"[\w][\w .+-]*")
WORST = 8


class Merging(Mixed):
    """A mix to be kept as one adapter; `rank` None is the exact sum."""

    base: str
    name: str = Name
    rank: int | None = Field(default=None, ge=1, le=1024)
    dtype: Dtype | None = None


class Resizing(BaseModel):
    """An adapter to be kept at a lower rank."""

    model_config = FROZEN

    adapter: str
    name: str = Name
    rank: int = Field(ge=1, le=1024)


class Converting(BaseModel):
    """An adapter to be written in another format."""

    model_config = FROZEN

    adapter: str
    name: str = Name
    format: Literal["kohya", "diffusers"] = "diffusers"
    dtype: Dtype | None = None


class Baking(Mixed):
    """A base to be written with a mix in its weights."""

    base: str
    name: str = Name


class Comparing(BaseModel):
    """Two adapters of which is asked how alike they are; `base` is loaded for kinds that depend on it."""

    model_config = FROZEN

    adapter: str
    other: str
    base: str


class Meeting(Mixed):
    """A mix of which is asked how its adapters meet."""

    base: str


def merging(wanted: Merging, desk: Desk) -> Done:
    """Adds up the mix, writes it into the library, and says what was lost."""
    desk.say("adding up")
    merged, report = merge(desk.stack(wanted.mix), rank=wanted.rank, base=_weights(wanted.base, desk))
    return _kept(merged, wanted.name, desk, error=report.total_error, dtype=wanted.dtype)


def resizing(wanted: Resizing, desk: Desk) -> Done:
    """Writes the nearest adapter of the rank, and says what was lost."""
    desk.say("resizing")
    smaller, report = resize(desk.library().get(wanted.adapter), rank=wanted.rank)
    return _kept(smaller, wanted.name, desk, error=report.total_error)


def converting(wanted: Converting, desk: Desk) -> Done:
    """Writes the adapter in the format."""
    desk.say("converting")
    adapter = desk.library().get(wanted.adapter)
    return _kept(adapter, wanted.name, desk, layout=wanted.format, dtype=wanted.dtype)


def baking(wanted: Baking, desk: Desk) -> Done:
    """Writes the base into the output folder."""
    desk.say("baking")
    ending = ".safetensors" if Path(wanted.base).is_file() else ""
    target = desk.settings.baked / f"{_plain(wanted.name)}{ending}"
    if target.exists():
        raise ConfigError(f"there is a base {target.name!r} already. Choose another name.")
    target.parent.mkdir(parents=True, exist_ok=True)
    _, report = bake(wanted.base, desk.stack(wanted.mix), target)
    return Done(result=json.dumps({"base": str(target), "error": report.total_error}))


def meeting(wanted: Meeting, desk: Desk) -> Done:
    """Says which modules clash and how much of each adapter survives, and draws the clash by block."""
    desk.say("comparing")
    stack = desk.stack(wanted.mix)
    found = interference(stack, base=_weights(wanted.base, desk))
    clash = found.clash
    heat_map(clash, title="1 cancels, 0 does not meet, below 0 reinforces", limit=1.0).save(
        desk.folder / HEAT
    )
    facts = {
        "adapters": [
            {"name": name, "survives": survives, "balanced": {"unet": weight.unet, "text": weight.text}}
            for name, survives, weight in zip(found.names, found.total_survival, found.weights, strict=True)
        ],
        "worst": [{"module": path, "clash": value} for path, value in list(clash.items())[:WORST]],
    }
    return Done((HEAT,), json.dumps(facts))


def comparing(wanted: Comparing, desk: Desk) -> Done:
    """Says how alike two adapters are, and draws the cosines by block where they change the same modules."""
    desk.say("comparing")
    library = desk.library()
    pair = library.get(wanted.adapter), library.get(wanted.other)
    needs_base = any(kind.needs_weight for one in pair for kinds in one.modules.values() for kind in kinds)
    found = compare(*pair, base=_weights(wanted.base, desk) if needs_base else None)
    cosines = {path: module.cosine for path, module in found.modules.items()}
    files = (HEAT,) if cosines else ()
    if cosines:
        heat_map(cosines, title="cosine: 1 alike, 0 unlike, -1 opposite", limit=1.0).save(desk.folder / HEAT)
    alike = sorted(found.modules.items(), key=lambda item: -abs(item[1].cosine))
    facts = {
        "names": [one.meta.name for one in pair],
        "norms": [found.norm_a, found.norm_b],
        "cosine": found.cosine,
        "overlap": median(module.overlap for module in found.modules.values()) if cosines else None,
        "both": len(cosines),
        "alone": [len(found.only_a), len(found.only_b)],
        "modules": [{"module": path, **asdict(module)} for path, module in alike[:WORST]],
    }
    return Done(files, json.dumps(facts))


def _weights(base: str, desk: Desk) -> Any:
    """The base in float32 on the CPU, where arithmetic is exact; the one in memory, if it is that."""
    model = desk.bases.get(base)
    if str(model.dtype) == "torch.float32" and model.device.type == "cpu":
        return model
    desk.bases.forget()
    return load(base, device="cpu", dtype="float32")


def _kept(
    adapter: Adapter,
    name: str,
    desk: Desk,
    *,
    error: float = 0.0,
    layout: str = "kohya",
    dtype: Dtype | None = None,
) -> Done:
    path = desk.settings.adapters / f"{_plain(name)}.safetensors"
    if path.exists():
        raise ConfigError(f"there is an adapter {name!r} already. Choose another name.")
    written = write(adapter, path, format=layout, dtype=dtype)
    facts = {"adapter": name, "error": error, "rounding": written.rounding, "autov3": written.autov3}
    return Done(result=json.dumps(facts))


def _plain(name: str) -> str:
    """A name that is a file name and nothing else. Raises ConfigError otherwise."""
    if not _NAME.fullmatch(name) or name.endswith((".", " ")):
        raise ConfigError(f"{name!r} cannot be a file name: use letters, digits, '-', '_' and spaces.")
    return name
