"""Folders of adapter files: found by name or by hash, known without reading them again."""

from difflora.library.entry import LibraryEntry
from difflora.library.library import Library, Resolved, resolve
from difflora.library.notes import Notes, read_notes, write_notes

__all__ = ["Library", "LibraryEntry", "Notes", "Resolved", "read_notes", "resolve", "write_notes"]
