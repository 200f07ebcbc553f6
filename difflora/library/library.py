"""Folders of adapter files: found by name or by hash, each looked at when it is needed."""

import os
import re
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from difflora.adapter import Adapter, Stack, Weight
from difflora.errors import AdapterFileError, LibraryError, listing
from difflora.formats import read
from difflora.library.entry import KnownHashes, LibraryEntry
from difflora.library.lookup import labels, names_meant, not_found
from difflora.library.notes import write_notes
from difflora.library.scanning import Stamp
from difflora.library.shelf import Shelf
from difflora.prompts import parse_tags

SHORTEST_HASH = 8
_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Resolved:
    """A prompt without its tags, and the stack they asked for."""

    prompt: str
    stack: Stack


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a file is: on which shelf, and what it is called there."""

    shelf: Shelf
    name: str

    @property
    def path(self) -> Path:
        return self.shelf.listing.files[self.name].path

    @property
    def stamp(self) -> Stamp:
        return self.shelf.listing.files[self.name].stamp

    @property
    def is_current(self) -> bool:
        """Whether the file is as it was when it was listed. A folder is taken to be, while it is there."""
        try:
            state = self.path.stat()
        except OSError:
            return False
        return self.path.is_dir() or Stamp(state.st_size, state.st_mtime_ns) == self.stamp


class Library:
    """The adapters in one or several folders and their subfolders.

    Making one lists file names only. Headers and notes are read when `entries` or `broken` is asked for,
    files hashed when a hash is looked for, both once as long as the file stays the same (size and time of
    change): what is known is kept in an index in the user's cache, or in the folder `index`. Names are
    looked up in the list and never joined to a path; links that lead out of the folder are not followed.
    Adapters in use are shared, not read again. Of several folders, names begin with the folder's.
    Threads may share a library.

    Raises LibraryError if there is no such folder, one lies in another, or `index` lies in one.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *others: str | os.PathLike[str],
        index: str | os.PathLike[str] | None = None,
    ) -> None:
        self.folders = tuple(dict.fromkeys(Path(one) for one in (folder, *others)))
        self._labels = labels(self.folders)
        kept = None if index is None else Path(index)
        self._shelves = [Shelf(root, kept) for root in self.folders]
        self._loaded: weakref.WeakValueDictionary[tuple[Path, Stamp], Adapter] = weakref.WeakValueDictionary()
        self._places: Mapping[str, _Place] = {}
        self._unusable: Mapping[str, str] = {}
        self._lock = threading.RLock()  # nobody looks up what is being listed anew
        self._arrange()

    def refresh(self) -> None:
        """Lists the folders anew. What is known of files that did not change is kept."""
        with self._lock:
            for shelf in self._shelves:
                shelf.refresh()
            self._arrange()

    @property
    def names(self) -> tuple[str, ...]:
        """Every file that is there, readable or not, sorted."""
        return tuple(self._places)

    @property
    def entries(self) -> Mapping[str, LibraryEntry]:
        """Name -> entry of every file that can be read, in the order of names."""
        with self._lock, self._saving():
            return {
                name: place.shelf.entry(place.name, shown=name)
                for name, place in self._places.items()
                if not place.shelf.facts(place.name).problem
            }

    @property
    def broken(self) -> Mapping[str, str]:
        """Name -> the reason why a file, link or folder cannot be used."""
        with self._lock, self._saving():
            problems = {name: place.shelf.facts(place.name).problem for name, place in self._places.items()}
        found = {name: problem for name, problem in problems.items() if problem}
        return dict(sorted({**found, **self._unusable}.items()))

    @property
    def duplicates(self) -> tuple[tuple[str, ...], ...]:
        """The groups of names whose files hold the same tensors, as far as their data hashes are known.

        A hash that a header states is believed where kinds, ranks and dtypes agree; after `hash_files` there
        are computed ones alone.
        """
        groups: dict[object, list[str]] = {}
        for name, entry in self.entries.items():
            facts = entry.facts
            if entry.hashes.identity:
                key = (entry.hashes.identity, tuple(facts.kinds.items()), facts.ranks, facts.dtypes)
                groups.setdefault(key, []).append(name)
        return tuple(tuple(names) for names in groups.values() if len(names) > 1)

    @property
    def index_problems(self) -> tuple[str, ...]:
        """Why the index of a folder could not be kept; it is then made again by the next process."""
        return tuple(shelf.unsaved for shelf in self._shelves if shelf.unsaved)

    def hash_files(self, *, progress: Callable[[int, int], None] | None = None) -> None:
        """Computes the hashes of every file that has none; `progress` is told how many of how many."""
        names = self.names
        with self._saving():
            for done, name in enumerate(names, start=1):
                self._hashed(name)
                if progress is not None:
                    progress(done, len(names))

    def get(self, name: str) -> Adapter:
        """The adapter called `name`: its file name without extension, with the folders above it where needed.

        Its `meta.name` is the shortest name that finds it here again. A name that is not listed makes the
        folder be listed once more; if it looks like a hash, it is then looked for as one (see `by_hash`).
        Raises LibraryError with near matches, or with all files that the name could mean, AdapterFileError
        if the file cannot be read.
        """
        found = self._named(name)
        if found is None and _is_hash(name):
            return self.by_hash(name)
        if found is None:
            raise self._unknown(name)
        return self._load(found)

    def find(self, name_or_hash: str) -> LibraryEntry:
        """The entry of an adapter, by name (see `get`) or by any hash that is known of it.

        Hashes are AutoV2, AutoV3, sshs_model_hash and sshs_legacy_hash, at least 8 digits. Those that
        headers and Civitai's files state count; only if none of them fits are files hashed.

        Raises LibraryError if nothing is found, or several different adapters are; AdapterFileError if the
        file cannot be read.
        """
        found = self._named(name_or_hash)
        if found is None and _is_hash(name_or_hash):
            digits = _digits(name_or_hash)
            with self._saving():
                stated = {name: self._known(name) for name in self.names}
                fits = {name: known for name, known in stated.items() if _fits(known, digits)}
                found = self._one(digits, fits) if fits else self._by_bytes(digits)
        with self._lock:
            place = self._places.get(found) if found else None
            if found is None or place is None:
                raise self._unknown(name_or_hash)
            if problem := place.shelf.facts(place.name).problem:
                raise AdapterFileError(problem)
            return place.shelf.entry(place.name, shown=found)

    def note(
        self,
        name_or_hash: str,
        *,
        trigger: str | None = None,
        weight: float | None = None,
        text: str | None = None,
        negative: str | None = None,
    ) -> LibraryEntry:
        """Writes notes beside the adapter that `find` finds, as `write_notes` does, and returns its entry."""
        found = self.find(name_or_hash)
        write_notes(found.path, trigger=trigger, weight=weight, text=text, negative=negative)
        self.refresh()
        return self.find(found.name)

    def by_hash(self, data_hash: str) -> Adapter:
        """The adapter whose data hash, or the hash of whose tensors (AutoV3) or file (AutoV2), starts with at
        least 8 digits.

        What headers state says only where to look first: the hash is computed before it counts. Files not
        hashed yet are hashed if need be; a full data hash or file hash stops at the first file that has it.
        Raises LibraryError if none has it, or if several different adapters do: by a part of a hash, or as
        the same tensors may act at several strengths.
        """
        with self._saving():
            while True:
                name = self._by_bytes(_digits(data_hash))
                expected = self._known(name).identity
                adapter = self._load(name)
                if adapter.data_hash == expected:
                    return adapter
                # Changed under the same size and time. What was known of it is corrected by now: look again.

    def _arrange(self) -> None:
        places: dict[str, _Place] = {}
        unusable: dict[str, str] = {}
        for shelf, label in zip(self._shelves, self._labels, strict=True):
            places |= {label + name: _Place(shelf, name) for name in shelf.listing.files}
            unusable |= {label + name: why for name, why in shelf.listing.unusable.items()}
        self._places, self._unusable = dict(sorted(places.items())), unusable

    @contextmanager
    def _saving(self) -> Iterator[None]:
        """Keeps in the index what is learned inside."""
        try:
            yield
        finally:
            with self._lock:
                for shelf in self._shelves:
                    shelf.save()

    @property
    def _where(self) -> str:
        return ", ".join(map(str, self.folders))

    def _named(self, name: str) -> str | None:
        """The one name that is meant, None if there is none. Raises LibraryError if there are several."""
        found = names_meant(name, self._places)
        if not found:
            self.refresh()
            found = names_meant(name, self._places)
        if len(found) > 1:
            raise LibraryError(
                f"the name '{name}' means {len(found)} adapters in {self._where}. Write one of:\n"
                f"{listing(found, 20)}"
            )
        return found[0] if found else None

    def _unknown(self, name: str) -> LibraryError:
        return LibraryError(not_found(name, self._where, list(self._places), self._unusable))

    def _by_bytes(self, digits: str) -> str:
        """The name of a file whose computed data or file hash begins with `digits`."""
        if not SHORTEST_HASH <= len(digits) <= 64 or not _HEX.fullmatch(digits):
            raise LibraryError(f"'{digits}' is no data hash: expected {SHORTEST_HASH} to 64 hex digits.")
        for hinted in (True, False):
            found: dict[str, KnownHashes] = {}
            for name, known in self._computed(digits, hinted=hinted):
                if digits in (known.identity, known.file):
                    return name
                if _begins(digits, known):
                    found[name] = known
            if _own(digits, found) or (found and not hinted):
                return self._one(digits, found)
        raise LibraryError(
            f"no adapter in {self._where} has the hash {digits} ({len(self._places)} files). The hash of "
            "the tensor data (AutoV3) or that of the whole file (AutoV2) is meant."
        )

    def _computed(self, digits: str, *, hinted: bool) -> Iterator[tuple[str, KnownHashes]]:
        """(name, hashes) of readable files, those computed already first; `hinted`: of those alone of which a
        computed or stated hash has these digits."""
        known = {name: self._known(name) for name in self.names}
        for name in sorted(known, key=lambda name: not (known[name].data and known[name].file)):
            if known[name].data and _begins(digits, known[name]):
                yield name, known[name]
            elif not hinted or _fits(known[name], digits):
                computed = self._hashed(name)
                if computed is not None:
                    yield name, computed

    def _one(self, digits: str, found: Mapping[str, KnownHashes]) -> str:
        """The first of the names, if all of them hold the same adapter."""
        found = _own(digits, found) or found
        different = {known.identity or name: name for name, known in found.items()}
        if len(different) > 1:
            lines = [f"{identity}  {name}" for identity, name in different.items()]
            raise LibraryError(
                f"the hash {digits} means {len(different)} adapters; write more of one of these, or its "
                f"name:\n{listing(lines)}"
            )
        return next(iter(found))

    def _known(self, name: str) -> KnownHashes:
        """The hashes known of a file; none of one that is gone."""
        with self._lock:
            place = self._places.get(name)
            return KnownHashes() if place is None else place.shelf.hashes(place.name)

    def _hashed(self, name: str) -> KnownHashes | None:
        """The computed hashes; None if the file cannot be read: it is named, with its reason, in `broken`."""
        with self._lock:
            place = self._places.get(name)
            try:
                return None if place is None else place.shelf.hash(place.name)
            except AdapterFileError:
                return None

    def _load(self, name: str) -> Adapter:
        with self._lock:
            place = self._places.get(name)
            if place is not None and not place.is_current:
                self.refresh()
                place = self._places.get(name)
            if place is None:
                raise self._unknown(name)
            key = (place.path, place.stamp)
        adapter = self._loaded.get(key)
        if adapter is None:
            adapter = read(place.path)
            stem = name.rpartition("/")[2]
            short = stem if names_meant(stem, self._places) == [name] else name
            adapter = replace(adapter, meta=replace(adapter.meta, name=short))
            with self._lock:
                self._loaded[key] = adapter
        with self._lock:
            if name in self._places and place.stamp == key[1]:
                place.shelf.keep_read(place.name, adapter.meta)
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


def _digits(text: str) -> str:
    return text.strip().lower().removeprefix("0x")


def _is_hash(text: str) -> bool:
    digits = _digits(text)
    return SHORTEST_HASH <= len(digits) <= 64 and _HEX.fullmatch(digits) is not None


def _fits(known: KnownHashes, digits: str) -> bool:
    """Whether a known hash, computed or stated, begins with the digits or is the beginning of them."""
    full = (known.data, known.file, known.identity, known.stated, known.spec, known.legacy)
    shortened = (one for one in known.beside if len(one) >= SHORTEST_HASH)
    return any(one.startswith(digits) for one in full) or any(
        one.startswith(digits) or digits.startswith(one) for one in shortened
    )


def _begins(digits: str, known: KnownHashes) -> bool:
    """Whether one of the computed hashes begins with the digits."""
    return any(one.startswith(digits) for one in (known.data, known.file, known.identity))


def _own(digits: str, found: Mapping[str, KnownHashes]) -> dict[str, KnownHashes]:
    """Those that the digits stand for alone. A hash of tensors stands for several adapters, if the same
    tensors act at several strengths; it is the own one of the adapter that acts fully."""
    return {
        name: known
        for name, known in found.items()
        if known.identity.startswith(digits) or known.file.startswith(digits)
    }
