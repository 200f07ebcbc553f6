"""Names and shapes of tensors in safetensors files, and how they differ from what a model needs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from difflora.errors import BaseModelError

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Header:
    """The shape of every tensor of a file by name, and the file's metadata."""

    shapes: Shapes
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """What a safetensors file says of its content. Raises BaseModelError if it is damaged or is none."""
    try:
        with safe_open(path, framework="pt") as file:
            # The binding has no items(): keys() is its own method, not a mapping's.
            names: list[str] = list(file.keys())
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            return Header(shapes, file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise BaseModelError(
            f"{path} cannot be read as safetensors: {error}. It may be an unfinished download, or of "
            "another format under this name. Get the file again."
        ) from error


def read_headers(paths: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors of several files, such as the shards of one model."""
    return {name: shape for path in paths for name, shape in read_header(path).shapes.items()}


def differences(expected: Shapes, found: Shapes) -> list[str]:
    """One line for each tensor that is missing, extra or of another shape; empty if the two agree."""
    missing = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in found]
    extra = [f"not known: {name} {shape}" for name, shape in found.items() if name not in expected]
    both = [name for name in expected if name in found and expected[name] != found[name]]
    return missing + [f"{name} is {found[name]}, expected {expected[name]}" for name in both] + extra
