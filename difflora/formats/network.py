"""What files say of the shape of an adapter: ranks and alphas, the algorithm, the width of the text."""

import json
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from difflora.formats.format import ALPHA
from difflora.formats.leaves import rank_of, width_of
from difflora.kinds import DoRA, Kind, LoRA

Modules = Mapping[str, tuple[Kind, ...]]

# Kind -> what LyCORIS calls it; the others are options or have no name there.
_ALGORITHMS = {"lora": "locon", "loha": "loha", "lokr": "lokr", "glora": "glora", "full": "full",
               "ia3": "ia3", "oft": "diag-oft", "boft": "boft"}  # fmt: skip


class _Size(NamedTuple):
    rank: int
    alpha: float


def network_facts(modules: Modules) -> dict[str, str]:
    """Ranks and alphas as kohya states them: of linear layers and 1×1 convolutions, and of larger ones.

    Where they are not all the same the word is "Dynamic", where there are none "None".
    """
    sizes = {path: size for path, kinds in modules.items() if (size := _size(kinds))}
    larger = {path for path in sizes if any(_has_kernel(kind) for kind in modules[path])}
    if len(larger) == len(sizes):
        larger = set()
    dim, alpha = _common(size for path, size in sizes.items() if path not in larger)
    arguments: dict[str, str] = {}
    if larger:
        arguments["conv_dim"], arguments["conv_alpha"] = _common(sizes[path] for path in larger)
    plain = all(isinstance(kind, LoRA) and kind.mid is None for kinds in modules.values() for kind in kinds)
    return {
        "ss_network_module": "networks.lora" if plain else "lycoris.kohya",
        "ss_network_dim": dim,
        "ss_network_alpha": alpha,
        "ss_network_args": json.dumps(arguments if plain else {**_options(modules), **arguments}),
    }


def widths(modules: Modules) -> dict[str, int]:
    """Path -> the number of input features, where a kind tells."""
    found = {}
    for path, kinds in modules.items():
        for kind in kinds:
            shapes = {leaf: tuple(tensor.shape) for leaf, tensor in kind.to_leaves().items()}
            if width := width_of(shapes):
                found[path] = width
    return found


def _size(kinds: tuple[Kind, ...]) -> _Size | None:
    for kind in kinds:
        leaves = kind.to_leaves()
        rank = rank_of(leaves)
        if rank is not None and ALPHA in leaves:
            return _Size(rank, round(float(leaves[ALPHA]), 6))
    return None


def _has_kernel(kind: Kind) -> bool:
    inner = kind.inner if isinstance(kind, DoRA) else kind
    return isinstance(inner, LoRA) and any(size > 1 for size in inner.extent[2:])


def _common(sizes: Iterable[_Size]) -> tuple[str, str]:
    known = set(sizes)
    dim, alpha = (
        str(*values) if len(values) == 1 else "Dynamic" if values else "None"
        for values in ({size.rank for size in known}, {size.alpha for size in known})
    )
    return dim, alpha


def _options(modules: Modules) -> dict[str, str]:
    """The arguments under which LyCORIS would train such an adapter, as far as they have names."""
    kinds = [kind for own in modules.values() for kind in own]
    inner = [kind.inner if isinstance(kind, DoRA) else kind for kind in kinds]
    names = sorted({_ALGORITHMS[kind.name] for kind in inner if kind.name in _ALGORITHMS})
    options = {"algo": names[0] if len(names) == 1 else "mixed"} if names else {}
    if any(isinstance(kind, DoRA) for kind in kinds):
        options["dora_wd"] = "True"
    if any(kind.name == "norm" for kind in kinds):
        options["train_norm"] = "True"
    return options
