"""What an adapter says of itself to people: a description, tags and a small picture in its metadata."""

import base64
import binascii
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from difflora.adapter import AdapterMeta

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL = "modelspec.thumbnail"
SIDE = 256  # pixels, as the specification recommends
MAX_THUMBNAIL = 1 << 20

_DATA_URL = re.compile(r"data:image/(?:png|jpeg|webp);base64,([A-Za-z0-9+/]+={0,2})")


def described(
    meta: AdapterMeta,
    *,
    description: str = "",
    tags: Sequence[str] = (),
    thumbnail: "Image | None" = None,
) -> AdapterMeta:
    """`meta` with these facts, which writers put under `modelspec.*`; what is empty stays as it was.

    The picture becomes a JPEG of at most 256 × 256 pixels inside the file.
    """
    facts = dict(meta.training)
    if description:
        facts["modelspec.description"] = description
    if tags:
        facts["modelspec.tags"] = ", ".join(tags)
    if thumbnail is not None:
        facts[THUMBNAIL] = data_url(thumbnail)
    return replace(meta, training=facts)


def data_url(picture: "Image") -> str:
    """A small copy of a picture as the text of a data: URL."""
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def is_thumbnail(value: str) -> bool:
    """Whether a value is a picture inside a data: URL, and no larger than one should be."""
    match = _DATA_URL.fullmatch(value) if len(value) <= MAX_THUMBNAIL else None
    if match is None:
        return False
    try:
        base64.b64decode(match[1], validate=True)
    except binascii.Error:
        return False
    return True
