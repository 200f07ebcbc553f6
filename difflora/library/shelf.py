"""One folder of a library: its files as listed, and what is known of each, learned when it is asked for."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from difflora.adapter import AdapterMeta
from difflora.errors import LibraryError
from difflora.formats import hashes, read
from difflora.library.entry import Facts, KnownHashes, LibraryEntry, facts_of, hashes_of
from difflora.library.index import Row, cache_folder, index_path, load_rows, save_rows
from difflora.library.notes import Sidecars, read_sidecars, stem_of
from difflora.library.scanning import Found, Listing, scan


@dataclass(frozen=True, slots=True)
class _Shown:
    """An entry, and what it was made of."""

    found: Found
    row: Row
    entry: LibraryEntry


class Shelf:
    """The adapters below `root`. `index` is the folder for the index; None: the user's cache.

    `unsaved` is why the index could not be kept the last time, "" if it was.

    Raises LibraryError if there is no such folder, or the index would lie inside it.
    """

    def __init__(self, root: Path, index: Path | None) -> None:
        self.root = root
        self.listing: Listing = scan(root)
        self.unsaved = ""
        self._index = index_path(index or cache_folder(), root)
        if Path(os.path.realpath(self._index)).is_relative_to(os.path.realpath(root)):
            if index is not None:
                raise LibraryError(
                    f"the index folder {index} lies inside the adapter folder {root}. Choose one outside: "
                    "nothing but notes is written there."
                )
            self.unsaved = f"the user's cache, {self._index.parent}, lies inside {root}"
        self._rows: dict[str, Row] | None = None
        self._changed = False
        self._shown: dict[str, _Shown] = {}

    def refresh(self) -> None:
        """Lists the folder anew. What is known of files that did not change is kept."""
        self.listing = scan(self.root)
        self._shown = {name: one for name, one in self._shown.items() if name in self.listing.files}

    def facts(self, name: str) -> Facts:
        """What the header of a file says, read once."""
        row = self._row(name)
        if row.facts is None:
            row = self._keep(name, replace(row, facts=facts_of(self.listing.files[name].path)))
        assert row.facts is not None
        return row.facts

    def entry(self, name: str, *, shown: str) -> LibraryEntry:
        """The entry of a file, under the name that is `shown`; made once as long as nothing of it changes."""
        facts, found = self.facts(name), self.listing.files[name]
        row, known = self._with_notes(name, found), self._shown.get(name)
        if known is not None and known.row is row and known.found == found and known.entry.name == shown:
            return known.entry
        entry = LibraryEntry(
            name=shown,
            path=found.path,
            size=found.stamp.size,
            modified_ns=found.stamp.modified_ns,
            facts=facts,
            hashes=hashes_of(facts, row.sidecars, data=row.data_hash, file=row.file_hash),
            notes=row.sidecars.notes,
            preview=found.preview,
            sidecars=tuple(found.path.with_name(stem_of(found.path) + ending) for ending in found.sidecars),
            sidecar_problem=row.sidecars.problem,
        )
        self._shown[name] = _Shown(found, row, entry)
        return entry

    def hashes(self, name: str) -> KnownHashes:
        """The hashes known of a file, without computing any."""
        facts, row = self.facts(name), self._with_notes(name, self.listing.files[name])
        return hashes_of(facts, row.sidecars, data=row.data_hash, file=row.file_hash)

    def hash(self, name: str) -> KnownHashes:
        """The hashes of a file, computed from its bytes once; AdapterFileError if it cannot be read."""
        row, path = self._row(name), self.listing.files[name].path
        if not row.data_hash:
            if path.is_dir():
                self.keep_read(name, read(path).meta)
            else:
                found = hashes(path)
                self._keep(name, replace(row, data_hash=found.data_hash, file_hash=found.sha256))
        elif not row.file_hash and not path.is_dir():
            self._keep(name, replace(row, file_hash=hashes(path).sha256))
        return self.hashes(name)

    def keep_read(self, name: str, meta: AdapterMeta) -> None:
        """Keeps what reading the file has shown of its identity."""
        row = self._row(name)
        if row.data_hash != meta.file_hash:
            row = self._keep(name, replace(row, data_hash=meta.file_hash, file_hash=""))
        if row.facts is not None and row.facts.scales != meta.scales:
            self._keep(name, replace(row, facts=replace(row.facts, scales=meta.scales)))

    def save(self) -> None:
        """Keeps what was learned since the last time; `unsaved` says why not, where it cannot."""
        if not self._changed or self._rows is None or self.unsaved:
            return
        rows = {
            name: self._lasting(name, row) for name, row in self._rows.items() if name in self.listing.files
        }
        try:
            save_rows(self._index, self.root, rows)
        except OSError as error:
            self.unsaved = f"{self._index} cannot be written: {error.strerror}"
        self._changed = False

    def _lasting(self, name: str, row: Row) -> Row:
        """The row without what may change while the file stays the same: a refused access."""
        if row.sidecars.problem:
            row = replace(row, sidecars=Sidecars(), beside={})
        if row.facts and row.facts.problem and not os.access(self.listing.files[name].path, os.R_OK):
            row = replace(row, facts=None)
        return row

    def _row(self, name: str) -> Row:
        """What is known of a file as it is now."""
        if self._rows is None:
            self._rows = load_rows(self._index, self.root)
        row, stamp = self._rows.get(name), self.listing.files[name].stamp
        return row if row is not None and row.stamp == stamp else Row(stamp)

    def _with_notes(self, name: str, found: Found) -> Row:
        """The same, with what its sidecars say now."""
        row = self._row(name)
        if row.beside == found.sidecars:
            return row
        beside = read_sidecars(found.path, size=found.stamp.size)
        return self._keep(name, replace(row, sidecars=beside, beside=found.sidecars))

    def _keep(self, name: str, row: Row) -> Row:
        assert self._rows is not None
        self._rows[name] = row
        self._changed = True
        return row
