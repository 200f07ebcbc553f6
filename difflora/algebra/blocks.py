"""The blocks of a model under the names that users know, and weights by block."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from difflora.adapter import Adapter, Stack, Weight
from difflora.errors import AdapterError, listing

BlockWeights = Mapping[str, float]
"""Row -> factor. A row is a block ("IN04", "MID", "OUT07", "TE1.03", "BASE" for all text encoders) or a
regular expression that is searched for in the path; the first row that matches counts, and 1 where none
does."""

# The numbers are those of original UNets of two layers a block, which A1111 and merging tools show.
_ITEM = re.compile(r"unet\.(down|up)_blocks\.(\d+)\.(?:resnets|attentions)\.(\d+)\.")
_SAMPLER = re.compile(r"unet\.(down|up)_blocks\.(\d+)\.(?:down|up)samplers\.")
_TEXT = re.compile(r"text_encoder(?:_(\d))?\.(?:.*?\.(?:layers|block)\.(\d+)\.)?")
_TRANSFORMER = re.compile(r"transformer\.(single_)?transformer_blocks\.(\d+)\.")
_SPAN = 3


def block_of(path: str) -> str:
    """The block that a module belongs to: "IN04", "MID", "OUT07", "TE1.03" (text encoder 1, layer 3),
    "BLOCK05" and "SINGLE05" of transformers, and "OTHER" for what stands outside (time embedding, conv_out).
    """
    if match := _ITEM.match(path):
        side, index, item = match[1], int(match[2]), int(match[3])
        return f"IN{_SPAN * index + item + 1:02}" if side == "down" else f"OUT{_SPAN * index + item:02}"
    if match := _SAMPLER.match(path):
        last = _SPAN * (int(match[2]) + 1)
        return f"IN{last:02}" if match[1] == "down" else f"OUT{last - 1:02}"
    if path.startswith("unet.mid_block."):
        return "MID"
    if path.startswith("unet.conv_in"):
        return "IN00"
    if match := _TEXT.match(path):
        layer = f".{int(match[2]):02}" if match[2] else ""
        return f"TE{match[1] or 1}{layer}"
    if match := _TRANSFORMER.match(path):
        return f"{'SINGLE' if match[1] else 'BLOCK'}{int(match[2]):02}"
    return "OTHER"


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """One adapter of a sum, and its weights: each a dial with factors by block."""

    adapter: Adapter
    dials: tuple[tuple[Weight, BlockWeights], ...]

    def weight(self, path: str) -> float:
        """The weight of one module: dial times block, summed where the adapter was given more than once."""
        return sum(dial.of(path) * _factor(rows, path) for dial, rows in self.dials)

    def dial(self, path: str) -> float:
        """The weight of one module without the factors of blocks."""
        return sum(dial.of(path) for dial, _ in self.dials)


def terms_of(stack: Stack, block_weights: BlockWeights | Sequence[BlockWeights] = ()) -> tuple[Term, ...]:
    """The adapters of a stack in canonical order with their weights; one row table for all, or one each.

    Raises AdapterError if their number is not that of the adapters, or a row matches no module.
    """
    tables = [block_weights] * len(stack) if isinstance(block_weights, Mapping) else list(block_weights)
    tables = tables or [{}] * len(stack)
    if len(tables) != len(stack):
        raise AdapterError(
            f"{len(tables)} tables of block weights were given for a stack of {len(stack)} adapters; "
            "give one for all, or one each"
        )
    _require_matches(tables, stack.paths())
    found: dict[str, Term] = {}
    for (adapter, dial), rows in zip(stack, tables, strict=True):
        known = found.get(adapter.data_hash)
        found[adapter.data_hash] = Term(adapter, ((known.dials if known else ()) + ((dial, rows),)))
    return tuple(found[key] for key in sorted(found))


def _factor(rows: BlockWeights, path: str) -> float:
    return next((factor for row, factor in rows.items() if _matches(row, path)), 1.0)


def _matches(row: str, path: str) -> bool:
    if row == "BASE":
        return path.startswith("text_encoder")
    return row == block_of(path) or re.search(row, path) is not None


def _require_matches(tables: Sequence[BlockWeights], paths: Sequence[str]) -> None:
    unknown = list(_unmatched({row for table in tables for row in table}, paths))
    if unknown:
        blocks = sorted({block_of(path) for path in paths})
        raise AdapterError(
            f"block weights that match no module of the stack:\n{listing(unknown)}\n"
            f"Blocks of these adapters are: {', '.join(blocks)}; BASE means every text encoder, and anything "
            "else is a regular expression searched for in the path."
        )


def _unmatched(rows: Iterable[str], paths: Sequence[str]) -> Iterator[str]:
    for row in sorted(rows):
        try:
            if not any(_matches(row, path) for path in paths):
                yield repr(row)
        except re.error as error:
            yield f"{row!r}: no regular expression: {error}"
