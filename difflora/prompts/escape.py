"""Text that is no prompt made into one that reads as that text."""

import re

from difflora.prompts.foreign import KEYWORDS

_SPECIAL = re.compile(r"[\\()\[\]{}<:#]|_(?=_)|\b(?=(?:BREAK|" + "|".join(KEYWORDS) + r")\b)")


def escape(text: str) -> str:
    """The prompt that `parse_attention` reads as `text`, letter by letter: for captions and other text."""
    return _SPECIAL.sub(lambda match: "\\" + match.group(), text)
