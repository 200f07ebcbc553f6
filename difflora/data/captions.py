"""The text that goes with an image: read from its file, and varied from sample to sample.

Nothing here keeps state: what a sample is trained with is a pure function of (seed, epoch, sample).
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from difflora.data.dataset import Item
from difflora.data.options import DataOptions
from difflora.data.plan import Sample
from difflora.draws import permutation, uniform
from difflora.errors import DataError

EXTENSIONS = (".txt", ".caption")
MAX_BYTES = 64 * 1024
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_LORA_TAG = re.compile(r"<(?:lora|lyco|hypernet):[^>]*>", re.IGNORECASE)


def caption_for(item: Item, options: DataOptions, *, seed: int, epoch: int, sample: Sample) -> str:
    """What one sample is trained with: its caption, tags shuffled, trigger in front, or "" when dropped.

    The first `keep_tokens` tags keep their place, and so does a trigger that is put in front.
    """
    key = (epoch, sample.item_index, sample.repeat_index)
    if options.caption_dropout and uniform(seed, "caption dropout", *key) < options.caption_dropout:
        return ""
    caption = item.caption
    if options.shuffle_tags:
        tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
        kept, rest = tags[: options.keep_tokens], tags[options.keep_tokens :]
        order = permutation(len(rest), seed, "tags", *key)
        caption = ", ".join([*kept, *(rest[index] for index in order)])
    return with_trigger(caption, options.trigger)


def with_trigger(caption: str, trigger: str) -> str:
    """The caption with the trigger in front, unless it holds it as a word already (in any case)."""
    if not trigger:
        return caption
    if re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption, re.IGNORECASE):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def without_trigger(caption: str, trigger: str, instead: str = "") -> str:
    """The caption with `instead` for every trigger, in any case, and no comma or space left over."""
    said = re.sub(rf"(?<!\w){re.escape(trigger)}(?!\w)", lambda _: instead, caption, flags=re.IGNORECASE)
    return ", ".join(words for part in said.split(",") if (words := " ".join(part.split())))


def read_caption(path: Path) -> str:
    """The text of a caption file (UTF-8, with or without byte-order mark), white space made single.

    Raises DataError with the reason alone: not UTF-8 (with the byte and its place), control characters, too
    long, or a tag of a web UI, which a text encoder would read as words.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise DataError(f"has {len(data)} bytes, at most {MAX_BYTES} are read")
    text = _decoded(data)
    if control := _CONTROL.search(text):
        raise DataError(f"holds the control character {control[0]!r}; save it as plain UTF-8 text")
    if tag := _LORA_TAG.search(text):
        raise DataError(f"holds {tag[0]!r}, which means nothing to a text encoder; take it out")
    return " ".join(text.split())


def find_caption(folder: Path, names: Sequence[str]) -> str | None:
    """The caption of one image from the caption files beside it, or None where there is none.

    `names` are those files of the image that end in one of `extensions(options)`, in any case.
    Raises DataError with the reason alone, also where several files say different things.
    """
    texts: dict[str, str] = {}
    for name in names:
        try:
            texts[name] = read_caption(folder / name)
        except DataError as error:
            raise DataError(f"caption {name} {error}") from error
    if len({name.casefold() for name in names}) < len(names):
        raise DataError(f"{_and(names)} differ only in upper and lower case; keep one")
    if len(set(texts.values())) > 1:
        raise DataError(f"{_and(names)} say different things; remove one or set caption_extension")
    return next(iter(texts.values()), None)


def extensions(options: DataOptions) -> tuple[str, ...]:
    """Endings of caption files, lower case, in the order they are tried."""
    return EXTENSIONS if options.caption_extension is None else (options.caption_extension.casefold(),)


def _decoded(data: bytes) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError("is UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start : error.start + 1]
        guess = byte.decode("cp1252", errors="ignore")
        hint = f" (in Windows-1252 it would be {guess!r})" if guess else ""
        raise DataError(
            f"is not UTF-8: byte 0x{byte[0]:02x} at offset {error.start}{hint}; save it as UTF-8"
        ) from error


def _and(names: Iterable[str]) -> str:
    return " and ".join(names)
