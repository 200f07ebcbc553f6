"""What the verbs of adapter arithmetic print: a table for people, or one JSON document."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rich.table import Table

from difflora.commands.console import make_console
from difflora.errors import ConfigError, span

if TYPE_CHECKING:
    from difflora.adapter import Adapter, Stack
    from difflora.algebra import Report
    from difflora.families import Model
    from difflora.formats import WrittenFile

WORST = 5


def stack_of(words: Sequence[str], *, adapters: Path | None) -> Stack:
    """The adapters given as FILE[:weight[:text]], or by name from the folder `adapters`."""
    from difflora.adapter import Stack
    from difflora.commands.options import AdapterOptions

    options = AdapterOptions(adapters=adapters, adapter=tuple(words), mode="auto")
    return Stack(options.entries(options.library()))


def base_of(name: str | None) -> Model | None:
    """The base in float32 on the CPU, where arithmetic is exact; None if none is named."""
    from difflora.families import load

    return None if name is None else load(name, device="cpu", dtype="float32")


def require_free(path: Path, *, overwrite: bool, flag: str = "--output") -> None:
    """Raises ConfigError if something is at `path` that may not be replaced; to be asked before long work."""
    if path.exists() and not overwrite:
        raise ConfigError(f"{flag} {path} exists. Choose another name, or give --overwrite.")
    if path.is_symlink() or (path.exists() and not path.is_file() and not path.is_dir()):
        raise ConfigError(f"{flag} {path} is no plain file. Choose another name.")


def free_target(path: Path, *, overwrite: bool, flag: str = "--output") -> Path:
    """`path`, whose folder is made. Raises ConfigError as `require_free` does."""
    require_free(path, overwrite=overwrite, flag=flag)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def save(
    adapter: Adapter, path: Path, *, layout: str, dtype: str | None, overwrite: bool
) -> tuple[WrittenFile, dict[str, Any]]:
    """Writes the adapter, and says so as part of a document."""
    from difflora.formats import write

    written = write(adapter, free_target(path, overwrite=overwrite), format=layout, dtype=dtype)
    document = {
        "output": str(written.path),
        "format": layout,
        "data_hash": written.data_hash,
        "autov3": written.autov3,
        "autov2": written.autov2,
        "rounding": written.rounding,
    }
    return written, document


def written_rows(written: WrittenFile) -> dict[str, str]:
    """What `show_facts` says of a written file."""
    lost = f"{written.rounding:.2e} of a factor at most" if written.rounding else ""
    return {"lost to rounding": lost, "AutoV3": written.autov3, "AutoV2": written.autov2}


def report_document(report: Report) -> dict[str, Any]:
    """A Report in plain values."""
    worst = sorted(report.error, key=lambda path: -report.error[path])[:WORST]
    return {
        "modules": len(report.error),
        "measured": len(report.norm),
        "exact": report.exact,
        "total_error": report.total_error,
        "ranks": sorted(set(report.ranks.values())),
        "dense": {"modules": len(report.dense), "bytes": sum(report.dense.values())} if report.dense else {},
        "worst": {path: report.error[path] for path in worst if report.error[path]},
        "share_of_base": {
            "median": statistics.median(report.share.values()),
            "largest": max(report.share.values()),
        }
        if report.share
        else {},
        "left_out": dict(report.left_out),
    }


def report_rows(document: Mapping[str, Any]) -> dict[str, str]:
    """The same in words, for `show_facts`."""
    modules, measured = document["modules"], document["measured"]
    over = "all modules" if measured == modules else f"{measured} of the modules"
    rows = {
        "modules": str(modules),
        "rank": span(document["ranks"]),
        "error": "none" if document["exact"] else f"{document['total_error']:.3%} of ΔW over {over}",
    }
    if document["worst"]:
        rows["most lost in"] = "\n".join(f"{error:.3%} {path}" for path, error in document["worst"].items())
    if dense := document["dense"]:
        size = f"{dense['bytes'] / 2**20:,.1f} MiB"
        rows["not of low rank"] = (
            f"{dense['modules']} modules, whose ΔW is whole: {size}; --rank makes it small"
        )
    if share := document["share_of_base"]:
        rows["ΔW of the base"] = f"{share['median']:.3%} a module (median), {share['largest']:.3%} at most"
    rows |= {f"left out: {name}": reason for name, reason in document["left_out"].items()}
    return rows


def conclude(
    written: WrittenFile,
    document: Mapping[str, Any],
    report: Report,
    *,
    as_json: bool,
    facts: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Says what was written and what was lost, `facts` first; returns the exit code 0."""
    lost = report_document(report)
    if as_json:
        return print_json({**document, **facts, "report": lost})
    show_facts(f"{written.path}", {**facts, **report_rows(lost), **written_rows(written)})
    return 0


def print_json(document: Mapping[str, Any]) -> int:
    """One JSON document on the standard output; returns the exit code 0."""
    print(json.dumps(document, indent=2, ensure_ascii=False))
    return 0


def show_facts(title: str, rows: Mapping[str, str]) -> None:
    """A table of two columns; rows without a value are left out."""
    table = Table(title=title, show_header=False, title_justify="left", title_style="bold")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    make_console().print(table)
