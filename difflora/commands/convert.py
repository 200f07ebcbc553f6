"""`difflora convert`: an adapter file in another format, or out of a pickle."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from difflora.commands.flags import parse, usage_error
from difflora.commands.results import free_target, print_json, require_free, save, show_facts, written_rows
from difflora.errors import ConfigError

ABOUT = """Writes an adapter in another format: for A1111, ComfyUI and kohya, for diffusers, or for PEFT.

difflora convert style.safetensors --format diffusers --output style_diffusers.safetensors

difflora convert old.pt --output old.safetensors

A pickle (.pt, .ckpt, .bin) is unpacked in a process of its own that can make nothing but tensors. That of a
PEFT folder, adapter_model.bin, is taken with the configuration beside it."""


@dataclass(frozen=True)
class Flags:
    """What is converted, and into what."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """An adapter file of any format, a PEFT or diffusers folder, or a pickle."""
    output: Path | None = None
    """The file to write; for --format peft the folder. Default for a pickle, and for a PEFT folder of such:
    beside it, as .safetensors."""
    format: Literal["kohya", "diffusers", "peft"] = "kohya"
    """How it is written."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """What numbers are stored as. Default: as they are."""
    family: str | None = None
    """The family of base models, where the file does not tell."""
    overwrite: bool = False
    """Replace a file that is there."""
    json: bool = False
    """Print one JSON document."""
    debug: bool = False
    """Show the traceback of an error."""


def run(words: Sequence[str]) -> int:
    """Converts; returns the exit code."""
    flags = parse(Flags, words, verb="convert", about=ABOUT)
    from difflora.formats import read
    from difflora.formats.pickles import readable

    target = flags.output or _beside(flags.source)
    require_free(target, overwrite=flags.overwrite)
    if not flags.source.exists():
        raise ConfigError(f"there is no file or folder {flags.source}")
    free_target(target, overwrite=flags.overwrite)
    with tempfile.TemporaryDirectory(prefix=".convert-", dir=target.parent) as folder:
        source = readable(flags.source, Path(folder))
        adapter = read(source.path, family=flags.family)
    written, document = save(
        adapter, target, layout=flags.format, dtype=flags.dtype, overwrite=flags.overwrite
    )
    kinds = sorted({kind.name for kinds in adapter.modules.values() for kind in kinds})
    facts: dict[str, Any] = {
        "source": str(flags.source),
        "family": adapter.meta.family,
        "modules": len(adapter.modules),
        "kinds": kinds,
        "words": sorted(adapter.tokens),
        "left_out": list(source.left_out),
    }
    if flags.json:
        print_json(document | facts)
        return 0
    shown = {
        name: ", ".join(value) if isinstance(value, list) else str(value) for name, value in facts.items()
    }
    show_facts(f"{written.path}", {"format": flags.format, **shown, **written_rows(written)})
    return 0


def _beside(source: Path) -> Path:
    from difflora.formats.pickles import peft_of

    if (whole := peft_of(source)) is not None:
        folder = whole.resolve()
        return folder.with_name(f"{folder.name}.safetensors")
    if source.suffix == ".safetensors" or source.is_dir():
        raise usage_error("convert", "needed: --output FILE")
    return source.with_suffix(".safetensors")
