"""What the rows of a module of a file are, in a form that covers renamed, fused and swapped modules alike.

Most original checkpoints rename a module and nothing else. Some hold the rows of several modules in one
(fused), and some hold the halves of a module in the other order (swapped). The rows of an original module
are a row of slices, each a run of rows of one of ours; the slices of one of our modules, in the order in
which they stand, are its rows.
"""

from dataclasses import dataclass
from typing import Literal

Naming = Literal["sgm", "clip", "open_clip", "t5", "bfl", "mmdit"]


@dataclass(frozen=True, slots=True)
class Slice:
    """The rows from `start` to `stop` of a module, as a file names it, which are rows of `path`.

    Counted in parts, of which the module has `of`, since models of one family differ in width: the key
    projection is rows 1/3 to 2/3 of every qkv.
    """

    path: str
    start: int = 0
    stop: int = 1
    of: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether it is all the rows there are."""
        return (self.start, self.stop) == (0, self.of)


Slices = tuple[Slice, ...]
"""What the rows of one module of a file are, in their order in the file."""


def whole(path: str) -> Slices:
    """One module and nothing else."""
    return (Slice(path),)


def thirds(*paths: str) -> Slices:
    """Three modules of equal height above each other."""
    return tuple(Slice(path, part, part + 1, 3) for part, path in enumerate(paths))


def swapped(path: str) -> Slices:
    """One module whose halves the file holds in the other order: ours begins with the file's second half."""
    return (Slice(path, 1, 2, 2), Slice(path, 0, 1, 2))
