"""A folder of adapter files: found by name or by hash, each looked at when it is needed."""

import difflib
import os
import re
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from difflora.adapter import Adapter, Stack, Weight
from difflora.errors import AdapterFileError, LibraryError, listing
from difflora.formats import FileReport, hashes, inspect, read
from difflora.prompts import parse_tags

SUFFIX = ".safetensors"
SHORTEST_HASH = 8
PREVIEW_SUFFIXES = tuple(
    f"{middle}.{kind}" for middle in ("", ".preview") for kind in ("png", "jpg", "jpeg", "webp", "gif")
)
Value = TypeVar("Value")
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class LibraryEntry:
    """One adapter file. `name` is its path below the folder, with `/` and without the extension."""

    name: str
    path: Path
    report: FileReport

    @property
    def preview(self) -> Path | None:
        """The image shown for it: `<stem>.png`, `<stem>.preview.png` ... beside the file, or None."""
        beside = (
            self.path.with_name(self.path.name.removesuffix(self.path.suffix) + s) for s in PREVIEW_SUFFIXES
        )
        return next((path for path in beside if path.is_file() and not path.is_symlink()), None)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A prompt without its tags, and the stack they asked for."""

    prompt: str
    stack: Stack


@dataclass(frozen=True, slots=True)
class _Stamp:
    """A file as it was when it was looked at; another one is another file."""

    path: Path
    size: int
    modified_ns: int


class Library:
    """The adapters in a folder and its subfolders.

    Making one lists file names only. Headers are read when `entries` or `broken` is asked for, files hashed
    when a hash is looked for, both once as long as the file stays the same. Names are looked up in the list
    and never joined to a path; links that lead out of the folder are not followed. Adapters in use are
    shared, not read again.

    Raises LibraryError if there is no such folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._reports: dict[_Stamp, FileReport] = {}
        self._hashes: dict[_Stamp, str] = {}
        self._loaded: weakref.WeakValueDictionary[_Stamp, Adapter] = weakref.WeakValueDictionary()
        self._files: Mapping[str, _Stamp] = {}
        self._unusable: Mapping[str, str] = {}
        self.refresh()

    def refresh(self) -> None:
        """Lists the folder anew. What is known of files that did not change is kept."""
        if not self.folder.is_dir():
            kind = "is a file" if self.folder.exists() else "does not exist"
            raise LibraryError(
                f"the adapter folder {self.folder} {kind}: expected a folder of {SUFFIX} files."
            )
        files: dict[str, _Stamp] = {}
        unusable: dict[str, str] = {}
        for path, problem in _walk(self.folder):
            # A name that is not Unicode could be neither typed nor kept in a recipe.
            found = path.relative_to(self.folder).as_posix()
            readable = found.encode(errors="replace").decode()
            name = readable[: -len(SUFFIX)] if readable.casefold().endswith(SUFFIX) else readable
            if found != readable:
                problem = problem or "has a file name that is no valid text: rename it."
            elif name in files:
                problem = problem or f"has the same name as {files[name].path.name}: rename one of them."
            if problem is None:
                try:
                    status = path.stat()
                    files[name] = _Stamp(path, status.st_size, status.st_mtime_ns)
                except OSError as error:
                    problem = f"cannot be looked at: {error.strerror}"
            if problem is not None:
                unusable[readable if name in files else name] = problem
        self._files = dict(sorted(files.items()))
        self._unusable = unusable

    @property
    def names(self) -> tuple[str, ...]:
        """Every file that is there, readable or not, sorted."""
        return tuple(self._files)

    @property
    def entries(self) -> Mapping[str, LibraryEntry]:
        """Name -> entry of every file that can be read, in the order of names."""
        return {
            name: LibraryEntry(name, stamp.path, report)
            for name, stamp in self._files.items()
            if (report := self._report(stamp)).ok
        }

    @property
    def broken(self) -> Mapping[str, str]:
        """Name -> the reason why a file, link or folder cannot be used."""
        reports = {name: self._report(stamp) for name, stamp in self._files.items()}
        found = {name: _reason(report) for name, report in reports.items() if not report.ok}
        return dict(sorted({**found, **self._unusable}.items()))

    def get(self, name: str) -> Adapter:
        """The adapter called `name`: its file name without extension, with the folders above it where needed.

        Its `meta.name` is the shortest name that finds it here again. A name that is not listed makes the
        folder be listed once more. Raises LibraryError with near matches, or with all files that the name
        could mean, AdapterFileError if the file cannot be read.
        """
        wanted = name.replace("\\", "/").removesuffix(SUFFIX)
        found = self._find(wanted)
        if not found:
            self.refresh()
            found = self._find(wanted)
        if len(found) > 1:
            raise LibraryError(
                f"the name '{name}' means {len(found)} adapters in {self.folder}. Write one of:\n"
                f"{listing(found, 20)}"
            )
        if not found:
            raise LibraryError(self._not_found(name, wanted))
        return self._load(found[0])

    def by_hash(self, data_hash: str) -> Adapter:
        """The adapter whose data hash (AutoV3) starts with at least 8 digits.

        Files not hashed yet are hashed; a full hash stops at the first file that has it. Raises LibraryError
        if none has it or, for a part of one, if several different adapters do.
        """
        digits = data_hash.strip().lower().removeprefix("0x")
        if not SHORTEST_HASH <= len(digits) <= 64 or not _HEX.fullmatch(digits):
            raise LibraryError(f"'{data_hash}' is no data hash: expected {SHORTEST_HASH} to 64 hex digits.")
        found: dict[str, str] = {}
        for name, known in self._hashed():
            if known.startswith(digits):
                found.setdefault(known, name)
                if len(digits) == 64:
                    break
        if len(found) > 1:
            lines = [f"{known}  {name}" for known, name in found.items()]
            raise LibraryError(
                f"the hash {digits} means {len(found)} adapters; write more of it:\n{listing(lines)}"
            )
        if not found:
            raise LibraryError(
                f"no adapter in {self.folder} has the data hash {digits} ({len(self._files)} files). The "
                "hash of the tensor data (AutoV3) is meant, not that of the whole file (AutoV2)."
            )
        return self._load(next(iter(found.values())))

    def _find(self, wanted: str) -> list[str]:
        """Names that end in `wanted` at a folder's border; one that equals it stands alone."""
        if wanted in self._files:
            return [wanted]
        return [name for name in self._files if name.endswith("/" + wanted)] if wanted else []

    def _not_found(self, name: str, wanted: str) -> str:
        if wanted in self._unusable:
            return f"the adapter '{name}' in {self.folder} {self._unusable[wanted]}"
        short = {known.rpartition("/")[2].casefold(): known for known in self._files}
        short |= {known.casefold(): known for known in self._files}
        near = dict.fromkeys(
            short[key] for key in difflib.get_close_matches(wanted.casefold(), short, 5, 0.6)
        )
        if not self._files:
            return f"no adapter is called '{name}': {self.folder} holds no {SUFFIX} files."
        hint = "Near names" if near else "The adapters are"
        names = listing(list(near) or list(self._files))
        return f"no adapter in {self.folder} is called '{name}'. {hint}:\n{names}"

    def _report(self, stamp: _Stamp) -> FileReport:
        return _remember(self._reports, stamp, lambda: inspect(stamp.path))

    def _hashed(self) -> Iterator[tuple[str, str]]:
        """(name, data hash) of every file with a readable header, those known already first."""
        for name, stamp in sorted(self._files.items(), key=lambda item: item[1] not in self._hashes):
            try:
                yield name, _remember(self._hashes, stamp, lambda path=stamp.path: hashes(path).data_hash)
            except AdapterFileError:
                continue  # named, with its reason, in `broken`

    def _load(self, name: str) -> Adapter:
        stamp = self._files[name]
        adapter = self._loaded.get(stamp)
        if adapter is None:
            adapter = read(stamp.path)
            stem = name.rpartition("/")[2]
            short = stem if self._find(stem) == [name] else name
            adapter = replace(adapter, meta=replace(adapter.meta, name=short))
            self._loaded[stamp] = adapter
            self._hashes[stamp] = adapter.data_hash
        return adapter


def resolve(prompt: str, library: Library) -> Resolved:
    """The prompt without its `<lora:...>` tags, and the stack that they ask for, in their order.

    Raises PromptError for tags that cannot be understood, LibraryError naming every adapter that is not
    found, and AdapterFileError for one that cannot be read.
    """
    tagged = parse_tags(prompt)
    entries: list[tuple[Adapter, Weight]] = []
    problems: list[str] = []
    for tag in tagged.tags:
        try:
            entries.append((library.get(tag.name), Weight(unet=tag.unet, text=tag.text)))
        except LibraryError as error:
            problems.append(str(error))
    if problems:
        raise LibraryError("\n".join(problems))
    return Resolved(tagged.text.strip() if tagged.tags else tagged.text, Stack(entries))


def _remember(known: dict[_Stamp, Value], stamp: _Stamp, look: Callable[[], Value]) -> Value:
    if stamp not in known:
        known[stamp] = look()
    return known[stamp]


def _walk(root: Path) -> Iterator[tuple[Path, str | None]]:
    """Every adapter file below `root`, and what else there is not used, each with the reason."""
    failed: list[tuple[Path, str | None]] = []

    def unreadable(error: OSError) -> None:
        failed.append((Path(error.filename), f"cannot be listed: {error.strerror}"))

    # realpath and not Path.resolve, which raises on a link to itself.
    inside = Path(os.path.realpath(root))
    for folder, subfolders, files in os.walk(root, onerror=unreadable):
        links = [name for name in subfolders if os.path.islink(os.path.join(folder, name))]
        for name in [*links, *(name for name in files if name.casefold().endswith(SUFFIX))]:
            path = Path(folder, name)
            target = Path(os.path.realpath(path))
            if path.is_symlink() and not target.is_relative_to(inside):
                yield path, f"is a link out of the folder, to {target}: it is not followed."
            elif name not in links:
                yield path, None
    yield from failed


def _reason(report: FileReport) -> str:
    if report.problem:
        return report.problem
    lines = [f"{name}: {why}" for name, why in report.unmatched.items()]
    return f"{len(lines)} of its parts cannot be used:\n{listing(lines)}" if lines else "it changes no module"
