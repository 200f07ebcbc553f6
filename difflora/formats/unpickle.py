"""The child process of `pickles`: `python -m difflora.formats.unpickle SOURCE TARGET`.

Reads a pickle that nobody vouches for, so it runs under limits, and nothing that it returns is trusted.
Writes TARGET, prints a line of JSON and returns 0, or ends with a traceback whose last line says why not.
"""

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from difflora.errors import AdapterFileError
from difflora.formats.container import write_tensors
from difflora.formats.safe import clip

MEMORY = 2 << 30
"""Bytes beside those of the file itself, of which two copies may be held."""
CPU_SECONDS = 500


class _Nothing:
    """Stands for a class that a pickle names and never uses."""


# The first embeddings there were hold a ParameterDict; checkpoints of Stable Diffusion 1 name a class of the
# program that trained them.
_HARMLESS = (
    torch.nn.ParameterDict,
    (_Nothing, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
)

# Trainers wrap the tensors of a model in these; A1111 an embedding's in the last.
_WRAPPERS = ("state_dict", "string_to_param")


def main(source: str, target: str) -> None:
    """Converts one file. Raises AdapterFileError and whatever torch's reader raises."""
    size = os.path.getsize(source)
    _limit(size)
    # Given a name, torch would choose its reader by the ending.
    with open(source, "rb") as file, torch.serialization.safe_globals([*_HARMLESS]):
        content = torch.load(file, map_location="cpu", weights_only=True)
    tensors, left_out = named_tensors(content)
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if claimed > 2 * size:  # rows of one value stored once can stand for any size
        raise AdapterFileError(f"its tensors claim {claimed} bytes, and the file has {size}")
    write_tensors(target, {name: tensor.contiguous() for name, tensor in tensors.items()})
    print(json.dumps({"tensors": len(tensors), "left_out": left_out}))


def named_tensors(content: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a loaded pickle by name, and the names of what else it holds.

    Raises AdapterFileError if there are no tensors, or none with names.
    """
    if not _is_mapping(content):
        raise AdapterFileError(
            f"it holds a {type(content).__name__}, whose tensors have no names that tell what they are for"
        )
    wrapper = next((name for name in _WRAPPERS if _is_mapping(content.get(name))), None)
    inner = content[wrapper] if wrapper else content
    tensors = {str(name): value.detach() for name, value in inner.items() if isinstance(value, Tensor)}
    if not tensors:
        raise AdapterFileError(f"it holds no tensors, but {clip(', '.join(map(str, content)))}")
    odd = [name for name, tensor in tensors.items() if tensor.layout != torch.strided or tensor.is_quantized]
    if odd:
        raise AdapterFileError(f"{len(odd)} tensors are sparse or quantised, the first being {clip(odd[0])}")
    outer = [str(name) for name in content if name != wrapper] if wrapper else []
    left_out = outer + [str(name) for name in inner if str(name) not in tensors]
    if wrapper == "string_to_param":
        if len(tensors) > 1:
            raise AdapterFileError(f"it holds {len(tensors)} embeddings, expected one a file")
        tensors = {"emb_params": next(iter(tensors.values()))}
    return tensors, left_out


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping | torch.nn.ParameterDict)


def _limit(size: int) -> None:
    """Bounds what this process may use from here on, where the system can."""
    try:
        import resource
    except ImportError:  # Windows has no such limits: there the parent's time limit is the only one
        return
    bounds = {
        resource.RLIMIT_DATA: MEMORY + 4 * size,
        resource.RLIMIT_CPU: CPU_SECONDS,
        resource.RLIMIT_FSIZE: 2 * size + (64 << 20),
        resource.RLIMIT_CORE: 0,
    }
    for what, bound in bounds.items():
        hard = resource.getrlimit(what)[1]
        value = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(what, (value, value))


if __name__ == "__main__":
    main(*sys.argv[1:])
