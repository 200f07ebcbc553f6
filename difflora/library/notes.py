"""What people wrote about an adapter, in the files beside it: A1111's `.json` and Civitai's `.civitai.info`.

Notes are never written into the adapter: another header is another file hash (AutoV2), by which pictures and
sites know the file.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from difflora.errors import LibraryError
from difflora.files import atomic_write

SUFFIX = ".safetensors"
USER = ".json"
CIVITAI = ".civitai.info"
MAX_SIDECAR = 4 << 20
MAX_TEXT = 20_000

# Field of Notes -> the key that A1111 and its forks keep it under.
_KEYS: Mapping[str, str] = {
    "trigger": "activation text",
    "negative": "negative text",
    "text": "notes",
    "description": "description",
}
_WEIGHT = "preferred weight"


@dataclass(frozen=True, slots=True)
class Notes:
    """What is said of an adapter beside it; `weight` is the one its user prefers, None if none is."""

    trigger: str = ""
    weight: float | None = None
    text: str = ""
    negative: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True)
class Sidecars:
    """What the files beside an adapter hold: notes, stated hashes, and why something there cannot be used."""

    notes: Notes = field(default_factory=Notes)
    hashes: tuple[str, ...] = ()
    problem: str = ""


def stem_of(path: Path) -> str:
    """The name that an adapter's sidecars begin with: a file's without extension, a folder's whole."""
    name = path.name
    return name[: -len(SUFFIX)] if name.casefold().endswith(SUFFIX) else name


def read_notes(path: str | os.PathLike[str]) -> Notes:
    """The notes beside the adapter file `path`; the user's own words go before Civitai's.

    Raises LibraryError if a file beside it cannot be read.
    """
    found = read_sidecars(Path(path), size=None)
    if found.problem:
        raise LibraryError(found.problem)
    return found.notes


def write_notes(
    path: str | os.PathLike[str],
    *,
    trigger: str | None = None,
    weight: float | None = None,
    text: str | None = None,
    negative: str | None = None,
) -> Path:
    """Writes notes into `<stem>.json` beside the adapter `path`, where A1111 looks too; returns that file.

    What is None stays as it was, "" or a weight of 0 takes a note away; keys of other programs stay. The
    file appears whole or not at all, and the adapter is not touched.

    Raises LibraryError if there is no such adapter, the weight or a text cannot be kept, or a file of that
    name is there that holds no notes: it is then left as it is.
    """
    adapter = Path(path)
    if not adapter.exists():
        raise LibraryError(f"{adapter} does not exist: notes are kept beside an adapter.")
    target = adapter.with_name(stem_of(adapter) + USER)
    if target.is_symlink():
        raise LibraryError(f"{target} is a link: notes are not written through it.")
    content = _object(target) if target.exists() else {}
    given = {"trigger": trigger, "text": text, "negative": negative}
    for which, value in given.items():
        if value is not None:
            if len(value) > MAX_TEXT:
                raise LibraryError(f"{which} of {len(value)} letters for {target}: at most {MAX_TEXT} fit.")
            content[_KEYS[which]] = value
    if weight is not None:
        if not math.isfinite(weight):
            raise LibraryError(f"preferred weight {weight} for {target}: expected a finite number.")
        content[_WEIGHT] = weight
    try:
        atomic_write(target, json.dumps(content, indent=4, ensure_ascii=False).encode())
    except OSError as error:
        raise LibraryError(f"{target} cannot be written: {error.strerror}") from error
    except UnicodeEncodeError as error:
        raise LibraryError(f"the notes for {target} are no valid text: {error.reason}") from error
    return target


def read_sidecars(path: Path, *, size: int | None) -> Sidecars:
    """What lies beside the adapter `path` of `size` bytes; what cannot be read is named in `problem`."""
    found, problems = Sidecars(), []
    for suffix, reader in ((CIVITAI, _civitai), (USER, _user)):
        beside = path.with_name(stem_of(path) + suffix)
        if not beside.is_file() or beside.is_symlink():
            continue
        try:
            found = reader(found, _object(beside), size)
        except LibraryError as error:
            problems.append(str(error))
        except (TypeError, ValueError) as error:
            problems.append(f"{beside}: {error}")
    return replace(found, problem="\n".join(problems))


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises LibraryError if there is none."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_SIDECAR + 1)
        if len(raw) > MAX_SIDECAR:
            raise ValueError(f"it is larger than {MAX_SIDECAR >> 20} MiB")
        content = json.loads(raw.decode("utf-8-sig"))
    except OSError as error:
        raise LibraryError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise LibraryError(f"{path} holds no notes: expected a JSON object; {error}") from error
    if not isinstance(content, dict):
        raise LibraryError(f"{path} holds no notes: expected a JSON object, got {type(content).__name__}")
    return content


def _user(before: Sidecars, content: Mapping[str, Any], size: int | None) -> Sidecars:
    """The user's own words, which replace what was there `before`."""
    texts = {which: _text(content.get(key), key) for which, key in _KEYS.items()}
    weight = content.get(_WEIGHT) or None  # 0 stands for "no preference"
    if weight is not None and (isinstance(weight, bool) or not math.isfinite(float(weight))):
        raise ValueError(f"{_WEIGHT} is {weight!r}, expected a number")
    notes = replace(before.notes, **{which: text for which, text in texts.items() if text})
    return replace(before, notes=replace(notes, weight=None if weight is None else float(weight)))


def _civitai(before: Sidecars, content: Mapping[str, Any], size: int | None) -> Sidecars:
    """A version of a model as Civitai describes it: its words, and the hashes of the file of this size."""
    words = content.get("trainedWords") or []
    files = content.get("files") or []
    if not isinstance(words, list) or not isinstance(files, list):
        raise ValueError("trainedWords and files should be lists")
    trigger = ", ".join(text.strip(", ") for text in (_text(word, "trainedWords") for word in words) if text)
    hashes = [digits for file in files if isinstance(file, dict) for digits in _stated(file, size)]
    notes = replace(
        before.notes, trigger=trigger, description=_text(content.get("description"), "description")
    )
    return replace(before, notes=notes, hashes=tuple(sorted(set(hashes))))


def _stated(file: Mapping[str, Any], size: int | None) -> list[str]:
    """The sha256 hashes of one of Civitai's files, if it is the one beside it."""
    stated = file.get("sizeKB")
    if not isinstance(stated, int | float) or size is None or abs(stated * 1024 - size) > 1:
        return []
    hashes = file.get("hashes")
    names = ("SHA256", "AutoV2", "AutoV3")
    found = [hashes.get(name) for name in names] if isinstance(hashes, dict) else []
    return [digits.lower() for digits in found if isinstance(digits, str) and len(digits) <= 64]


def _text(value: object, key: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{key} is {type(value).__name__}, expected text")
    printable = "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in value)
    return printable[:MAX_TEXT].strip()
