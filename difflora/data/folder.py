"""A folder of images to a Dataset: every file read, hashed and decoded, every problem named at once."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from difflora.data import captions, images
from difflora.data.dataset import Dataset, Item, Problem
from difflora.data.layout import Concept, by_name, find_concepts, looks_like_image, visible
from difflora.data.options import DataOptions
from difflora.errors import DataError

# Decoders work outside the interpreter's lock; more threads would hold more 64-megapixel pictures at once.
_THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class _Candidate:
    path: Path
    name: str
    caption: str
    repeats: int


@dataclass(frozen=True, slots=True)
class _Survey:
    """What names and captions tell about one folder."""

    candidates: tuple[_Candidate, ...]
    problems: tuple[Problem, ...]
    ignored: tuple[str, ...]


def scan(options: DataOptions) -> Dataset:
    """The images of `options.data` with captions and repeats; every image file is decoded to its end.

    Raises DataError that names every file and folder that cannot be used, with the reason. With `skip_bad`
    they are left out and listed in `Dataset.skipped`; it is raised all the same when no image is left or none
    was there.
    """
    concepts, problems = find_concepts(options.data)
    surveys = [_survey(concept, options) for concept in concepts]
    candidates = sorted((c for s in surveys for c in s.candidates), key=lambda c: by_name(c.name))
    with images.pillow_warnings(), ThreadPoolExecutor(_THREADS) as pool:
        checked = list(pool.map(_check, candidates))
    found = [
        *problems,
        *(p for s in surveys for p in s.problems),
        *(c for c in checked if isinstance(c, Problem)),
    ]
    bad = {problem.name for problem in found}
    items = tuple(c for c in checked if isinstance(c, Item) and not _refused(c.name, bad))
    skipped = tuple(sorted(found, key=lambda problem: by_name(problem.name)))
    if skipped and (not items or not options.skip_bad):
        raise DataError(_report(options.data, skipped, total=len(candidates), left=len(items)))
    ignored = sorted((name for s in surveys for name in s.ignored), key=by_name)
    return Dataset(options.data, items, skipped, tuple(ignored))


def _check(candidate: _Candidate) -> Item | Problem:
    try:
        data = images.read_bytes(candidate.path)
        size = images.probe(data)
    except DataError as error:
        return Problem(candidate.name, str(error))
    digest = hashlib.sha256(data).hexdigest()
    return Item(candidate.path, candidate.name, candidate.caption, candidate.repeats, size, digest)


def _refused(name: str, bad: set[str]) -> bool:
    """Whether a problem names this file, the folder it lies in, or the whole data folder."""
    return bool(bad & {name, "./", name.rpartition("/")[0] + "/"})


def _survey(concept: Concept, options: DataOptions) -> _Survey:
    texts: dict[str, list[str]] = defaultdict(list)  # stem -> its caption files
    pictures: dict[str, list[str]] = defaultdict(list)  # stem -> its images
    others: list[str] = []
    endings = _endings_read(options)
    for entry in visible(concept.path):
        stem, ending = os.path.splitext(entry.name.casefold())
        if looks_like_image(entry.name):
            pictures[stem].append(entry.name)
        elif ending in endings:
            texts[stem].append(entry.name)
        elif not os.path.isdir(entry.path):
            others.append(entry.name)
    problems = _same_stem(pictures.values(), concept.prefix)
    candidates = []
    for stem, names in pictures.items():
        try:
            caption = _caption(concept, sorted(texts.pop(stem, []), key=by_name), options)
        except DataError as error:
            problems += [Problem(concept.prefix + name, str(error)) for name in names]
            caption = ""
        repeats = concept.repeats * options.repeats
        candidates += [
            _Candidate(concept.path / name, concept.prefix + name, caption, repeats) for name in names
        ]
    others += [name for names in texts.values() for name in names]
    return _Survey(tuple(candidates), tuple(problems), tuple(concept.prefix + name for name in others))


def _endings_read(options: DataOptions) -> tuple[str, ...]:
    """Endings of the caption files that are read: none where one caption is given for all."""
    return () if options.caption else captions.extensions(options)


def _caption(concept: Concept, names: Sequence[str], options: DataOptions) -> str:
    """The caption of one image, without trigger. Raises DataError (reason alone) if nothing says it."""
    if options.caption:
        return options.caption
    text = captions.find_caption(concept.path, names)
    caption = concept.caption if text is None else text
    if caption or options.trigger:
        return caption
    if names:
        raise DataError(f"caption {names[0]} is empty; describe the image, or set `trigger` or `caption`")
    endings = " or ".join(captions.extensions(options))
    raise DataError(f"has no caption: add a {endings} file of the same name, or set `trigger` or `caption`")


def _same_stem(groups: Iterable[list[str]], prefix: str) -> list[Problem]:
    found = []
    for names in groups:
        for name in names if len(names) > 1 else ():
            others = ", ".join(sorted((other for other in names if other != name), key=by_name))
            found.append(
                Problem(prefix + name, f"has the same name as {others}, so they share a caption; rename one")
            )
    return found


def _report(root: Path, problems: Sequence[Problem], *, total: int, left: int) -> str:
    head = f"{root}: {len(problems)} problem(s) among {total} image(s):"
    lines = [f"  {problem.name}: {problem.reason}" for problem in problems]
    if left:
        last = f"Repair or remove them, or set skip_bad to learn from the other {left} image(s)."
    else:
        last = "No usable image is left; repair or replace them."
    return "\n".join([head, *lines, last])
