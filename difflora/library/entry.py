"""One adapter of a library, and what is kept of it between two looks."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from difflora.adapter import identity
from difflora.errors import listing, span
from difflora.formats import FileReport, inspect
from difflora.library.notes import Notes, Sidecars

# Of kohya; LyCORIS's begins with 0x and is another one, of the tensors in the order of its own.
_DATA_HASH = re.compile(r"[0-9a-f]{64}")
_SPEC_HASH = re.compile(r"(?:0x)?([0-9a-f]{64})")
_LEGACY_HASH = re.compile(r"[0-9a-f]{8}")
# Of no bytes at all: some trainers state it whatever the data.
_OF_NOTHING = "e3b0c442"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file's header says. `stated`, `spec` and `legacy` are the hashes it claims to have, "" if none;
    `scales` is that of AdapterMeta; `problem` is why it cannot be used, "" if it can."""

    format: str = ""
    family: str = ""
    title: str = ""
    trigger: str = ""
    kinds: Mapping[str, int] = field(default_factory=dict)
    ranks: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    stated: str = ""
    spec: str = ""
    legacy: str = ""
    scales: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class KnownHashes:
    """Hashes in lower-case hex, "" where not known.

    `data` and `file` were computed from the bytes. `stated` (sshs_model_hash as kohya computes it), `spec`
    (modelspec.hash_sha256) and `legacy` (sshs_legacy_hash) are what the header claims, `beside` what
    Civitai's file beside it does. `scales` is that of AdapterMeta.
    """

    data: str = ""
    file: str = ""
    stated: str = ""
    spec: str = ""
    legacy: str = ""
    beside: tuple[str, ...] = ()
    scales: str = ""

    @property
    def tensors(self) -> str:
        """The hash of the tensor data: computed, or else stated, or else ""."""
        return self.data or self.stated

    @property
    def identity(self) -> str:
        """What the adapter is known by, as far as `tensors` are; see `difflora.adapter.identity`."""
        return identity(self.tensors, self.scales) if self.tensors else ""

    @property
    def autov3(self) -> str:
        """The first 12 digits of `tensors`."""
        return self.tensors[:12]

    @property
    def autov2(self) -> str:
        """The first 10 digits of the file's sha256; "" until it was computed."""
        return self.file[:10]


@dataclass(frozen=True, slots=True)
class LibraryEntry:
    """One adapter file. `name` is its path below the folder, with `/` and without the extension;
    `modified_ns` is when it was changed, in nanoseconds since 1970.

    `preview` is the picture shown for it (`<stem>.png`, `<stem>.preview.png` ...), `sidecars` the files of
    notes beside it, `sidecar_problem` why one of those cannot be read.
    """

    name: str
    path: Path
    size: int
    modified_ns: int
    facts: Facts
    hashes: KnownHashes
    notes: Notes = field(default_factory=Notes)
    preview: Path | None = None
    sidecars: tuple[Path, ...] = ()
    sidecar_problem: str = ""

    @property
    def family(self) -> str:
        return self.facts.family

    @property
    def kinds(self) -> Mapping[str, int]:
        """Kind -> the number of modules that have it."""
        return self.facts.kinds

    @property
    def ranks(self) -> tuple[int, ...]:
        return self.facts.ranks

    @property
    def rank(self) -> str:
        """The ranks in words: "16", "8 to 16", or "" where there are none."""
        return span(self.ranks)

    @property
    def trigger(self) -> str:
        """The words that call it: the user's own, or Civitai's, or the file's."""
        return self.notes.trigger or self.facts.trigger

    @property
    def report(self) -> FileReport:
        """The header in full, read anew."""
        return inspect(self.path)


def facts_of(path: Path) -> Facts:
    """What the header of the file `path` says; raises nothing on its content."""
    report = inspect(path)
    stated = _DATA_HASH.fullmatch(_said(report, "sshs_model_hash"))
    spec = _SPEC_HASH.fullmatch(_said(report, "modelspec.hash_sha256"))
    legacy = _LEGACY_HASH.fullmatch(_said(report, "sshs_legacy_hash"))
    return Facts(
        format=report.format,
        family=report.family,
        title=report.name,
        trigger=report.trigger,
        kinds=report.kind_counts,
        ranks=report.ranks,
        dtypes=report.dtypes,
        words=report.words,
        stated=stated[0] if stated else "",
        spec=spec[1] if spec else "",
        legacy=legacy[0] if legacy else "",
        scales=report.scales,
        problem=_problem(report),
    )


def hashes_of(facts: Facts, sidecars: Sidecars, *, data: str, file: str) -> KnownHashes:
    """Everything known of a file's hashes."""
    return KnownHashes(data, file, facts.stated, facts.spec, facts.legacy, sidecars.hashes, facts.scales)


def _said(report: FileReport, key: str) -> str:
    value = report.metadata.get(key, "").strip().lower()
    return "" if value.removeprefix("0x").startswith(_OF_NOTHING) else value


def _problem(report: FileReport) -> str:
    if report.ok:
        return ""
    if report.problem:
        return report.problem
    lines = [f"{name}: {why}" for name, why in report.unmatched.items()]
    return f"{len(lines)} of its parts cannot be used:\n{listing(lines)}" if lines else "it changes no module"
