"""What a tab is."""

from collections.abc import Callable
from dataclasses import dataclass

from webui.shared import Shared


@dataclass(frozen=True, slots=True)
class Tab:
    """A title, and the function that puts the tab's widgets on the page."""

    title: str
    build: Callable[[Shared], None]
