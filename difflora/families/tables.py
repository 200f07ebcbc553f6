"""Tables of module names in little space: blocks that are alike are written once."""

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import TypedDict

# A name up to and with the first number that counts blocks.
_NUMBERED = re.compile(r"(.+?)\.(\d+)\.(.+)")


class Blocks(TypedDict):
    """The modules of the blocks `block`.`start` to `block`.`stop` - 1, each of which has all of `modules`."""

    block: str
    start: int
    stop: int
    modules: list[str]


def pack(names: Sequence[str]) -> list[str | Blocks]:
    """`names` with every run of blocks that have the same modules in the same order as one entry."""
    packed: list[str | Blocks] = []
    for (block, number), group in itertools.groupby(names, key=_place):
        members = list(group)
        if block is None:
            packed += members
            continue
        modules = [name.removeprefix(f"{block}.{number}.") for name in members]
        before = packed[-1] if packed else ""
        if isinstance(before, dict) and (before["block"], before["stop"], before["modules"]) == (
            block,
            number,
            modules,
        ):
            before["stop"] += 1
        else:
            packed.append(Blocks(block=block, start=number, stop=number + 1, modules=modules))
    return packed


def unpack(packed: Iterable[str | Blocks]) -> list[str]:
    """The inverse of `pack`."""
    names: list[str] = []
    for entry in packed:
        if isinstance(entry, str):
            names.append(entry)
        else:
            numbers = range(entry["start"], entry["stop"])
            names += [
                f"{entry['block']}.{number}.{module}" for number in numbers for module in entry["modules"]
            ]
    return names


def _place(name: str) -> tuple[str | None, int]:
    match = _NUMBERED.fullmatch(name)
    return (match[1], int(match[2])) if match else (None, 0)
