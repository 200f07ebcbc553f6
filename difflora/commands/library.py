"""`difflora library`: which adapters are in folders, and which one a name or a hash means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.table import Table

from difflora.commands.console import make_console
from difflora.commands.flags import parse, usage_error
from difflora.commands.results import print_json, show_facts
from difflora.errors import span
from difflora.formats.safe import clip

if TYPE_CHECKING:
    from difflora.library import Library, LibraryEntry

ABOUT = """Lists the adapters in folders and their subfolders, such as A1111's or ComfyUI's models/Lora.

difflora library models/Lora --find 6f2c0e1a9b3d"""


@dataclass(frozen=True)
class Flags:
    """Which folders are listed."""

    folder: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FOLDER")]
    """One or several folders of adapters."""
    find: str | None = None
    """Show the one adapter that a name or a hash means: AutoV2, AutoV3 or sshs, at least 8 digits."""
    note: str | None = None
    """Write this note beside the adapter that --find finds; the adapter itself is not changed."""
    trigger: str | None = None
    """Write its trigger words there."""
    weight: float | None = None
    """Write the weight that you prefer there; 0 takes it away."""
    hash: bool = False
    """Compute the hashes of all files, for AutoV2 and duplicates that are certain: each is read once."""
    index: Path | None = None
    """Folder in which what is known of the files is kept, in place of the user's cache."""
    json: bool = False
    """Print one JSON document."""
    debug: bool = False
    """Show the traceback of an error."""


def run(words: Sequence[str]) -> int:
    """Lists or finds; returns the exit code."""
    flags = parse(Flags, words, verb="library", about=ABOUT)
    from difflora.library import Library

    if not flags.folder:
        raise usage_error("library", "needed: a folder of adapters")
    library = Library(*flags.folder, index=flags.index)
    if flags.hash:
        library.hash_files()
    noted = any(given is not None for given in (flags.note, flags.trigger, flags.weight))
    if noted and flags.find is None:
        raise usage_error("library", "--note, --trigger and --weight need --find NAME")
    if flags.find is not None:
        entry = library.find(flags.find)
        if noted:
            entry = library.note(entry.name, text=flags.note, trigger=flags.trigger, weight=flags.weight)
        copies = [name for group in library.duplicates if entry.name in group for name in group]
        document = _document(entry) | {"copies": [name for name in copies if name != entry.name]}
        print_json(document) if flags.json else _show_one(document)
        return 0
    if flags.json:
        print_json(
            {
                "folders": [str(folder) for folder in library.folders],
                "adapters": [_document(entry) for entry in library.entries.values()],
                "broken": dict(library.broken),
                "duplicates": [list(group) for group in library.duplicates],
                "index_problems": list(library.index_problems),
            }
        )
        return 0
    _show(library)
    return 0


def _document(entry: LibraryEntry) -> dict[str, Any]:
    """An entry in plain values; what is not known is null."""
    known, notes = entry.hashes, entry.notes
    return {
        "name": entry.name,
        "file": str(entry.path),
        "size": entry.size,
        "family": entry.family,
        "format": entry.facts.format,
        "kinds": dict(entry.kinds),
        "ranks": list(entry.ranks),
        "dtypes": list(entry.facts.dtypes),
        "words": list(entry.facts.words),
        "title": entry.facts.title,
        "trigger": entry.trigger,
        "hashes": {
            "autov2": known.autov2 or None,
            "autov3": known.autov3 or None,
            "data": known.data or None,
            "sshs_model_hash": known.stated or None,
            "sshs_legacy_hash": known.legacy or None,
        },
        "weight": notes.weight,
        "negative": notes.negative,
        "notes": notes.text,
        "description": notes.description,
        "preview": None if entry.preview is None else str(entry.preview),
        "sidecars": [str(path) for path in entry.sidecars],
        "sidecar_problem": entry.sidecar_problem,
    }


def _show(library: Library) -> None:
    """Everything as a table, then what cannot be used and what is there twice."""
    entries, broken = library.entries, library.broken
    table = Table(title=f"{len(entries)} adapters", title_justify="left", title_style="bold")
    rows = [_cells(entry) for entry in entries.values()]
    shown = [column for column in rows[0] if any(row[column] for row in rows)] if rows else []
    for column in shown:
        table.add_column(column, overflow="fold", no_wrap=column.startswith("Auto"))
    for row in rows:
        table.add_row(*(row[column] for column in shown))
    console = make_console()
    console.print(table)
    if broken:
        console.print(f"{len(broken)} cannot be used:")
    for name, reason in broken.items():
        console.print(f"  {clip(name)}: {_indented(reason)}")
    if groups := library.duplicates:
        console.print(f"{len(groups)} are there more than once:")
    for group in groups:
        console.print(f"  {' = '.join(clip(name) for name in group)}")
    for entry in entries.values():
        if entry.sidecar_problem:
            console.print(f"notes of {clip(entry.name)}: {_indented(entry.sidecar_problem)}")
    for problem in library.index_problems:
        console.print(f"the index was not kept: {problem}")


def _cells(entry: LibraryEntry) -> dict[str, str]:
    """Column -> what stands there; columns without a word are not shown."""
    return {
        "name": clip(entry.name),
        "family": entry.family,
        "kinds": ", ".join(entry.kinds) or "words",
        "rank": entry.rank,
        "trigger": clip(entry.trigger, 40),
        "weight": "" if entry.notes.weight is None else f"{entry.notes.weight:g}",
        "AutoV2": entry.hashes.autov2,
        "AutoV3": entry.hashes.autov3,
        "preview": "yes" if entry.preview else "",
    }


def _show_one(document: Mapping[str, Any]) -> None:
    hashes = document["hashes"]
    rows = {
        "file": document["file"],
        "family": document["family"],
        "kinds": ", ".join(f"{name} ({count} modules)" for name, count in document["kinds"].items()),
        "rank": span(document["ranks"]),
        "words": ", ".join(document["words"]),
        "trigger": document["trigger"],
        "preferred weight": "" if document["weight"] is None else f"{document['weight']:g}",
        "notes": document["notes"],
        "description": document["description"],
        "AutoV2": hashes["autov2"] or "",
        "AutoV3": hashes["autov3"] or "",
        "sshs_model_hash": hashes["sshs_model_hash"] or "",
        "sshs_legacy_hash": hashes["sshs_legacy_hash"] or "",
        "preview": document["preview"] or "",
        "sidecars": ", ".join(document["sidecars"]),
        "problem beside it": document["sidecar_problem"],
        "same tensors as": ", ".join(document["copies"]),
    }
    show_facts(clip(document["name"]), {name: _lines(value) for name, value in rows.items()})


def _lines(text: str) -> str:
    """Text of others without letters that a terminal would obey."""
    return "\n".join(clip(line, 2000) for line in text.split("\n"))


def _indented(text: str) -> str:
    return _lines(text).replace("\n", "\n    ")
