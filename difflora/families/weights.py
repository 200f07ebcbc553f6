"""The weight files of a diffusers folder: which there are, whether they fit the configs, and their hash."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from difflora.errors import BaseModelError, listing
from difflora.families.family import canonical_names
from difflora.families.headers import differences, read_headers
from difflora.families.skeleton import skeleton

_HALF_VARIANT = "fp16"
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")

# Tensors of older exports that newer libraries do not keep.
_OBSOLETE = re.compile(r"\.position_ids$")

# Attention of a VAE as diffusers wrote it until 2023, and still reads it.
_VAE_RENAMES = (
    (".query.", ".to_q."),
    (".key.", ".to_k."),
    (".value.", ".to_v."),
    (".proj_attn.", ".to_out.0."),
)


@dataclass(frozen=True, slots=True)
class ComponentWeights:
    """The files of one component, and the diffusers variant ("fp16" or None) that they belong to."""

    files: tuple[Path, ...]
    variant: str | None


def component_weights(folder: Path, *, dtype: torch.dtype) -> ComponentWeights:
    """The weight files of one component; of two precisions, those of the one nearer to `dtype`.

    Raises BaseModelError if there is no .safetensors file.
    """
    by_variant: dict[str | None, list[Path]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        kind = _SHARD.sub("", path.stem.replace(f".{_HALF_VARIANT}", ""))
        if kind in ("model", "diffusion_pytorch_model"):
            by_variant.setdefault(_HALF_VARIANT if f".{_HALF_VARIANT}" in path.stem else None, []).append(
                path
            )
    order = (None, _HALF_VARIANT) if dtype == torch.float32 else (_HALF_VARIANT, None)
    for variant in order:
        if variant in by_variant:
            return ComponentWeights(tuple(by_variant[variant]), variant)
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        raise BaseModelError(
            f"{folder} has its weights as a pickle only ({pickles[0]}), which runs code when it is opened, "
            "so it is not loaded. Get the model with .safetensors weights."
        )
    raise BaseModelError(f"{folder} has no .safetensors weights. Download or export the model again.")


def require_folder_tensors(folder: Path, weights: Mapping[str, ComponentWeights]) -> None:
    """Raises one BaseModelError naming every tensor that the files lack, have too many or misshapen."""
    wrong: list[str] = []
    for name, found in weights.items():
        expected = {key: tuple(value.shape) for key, value in skeleton(folder / name).state_dict().items()}
        shapes = read_headers(found.files)
        wrong += [
            f"{name}: {line}"
            for line in differences(
                {_canonical(key, name): shape for key, shape in expected.items()},
                {_canonical(key, name): shape for key, shape in shapes.items() if not _OBSOLETE.search(key)},
            )
        ]
    require_nothing_wrong(folder, wrong)


def require_nothing_wrong(path: Path, wrong: list[str]) -> None:
    """Raises BaseModelError if `wrong` names any tensor."""
    if wrong:
        raise BaseModelError(
            f"{path}: {len(wrong)} tensors are not what its architecture needs.\n"
            f"{listing(wrong, 12)}\n"
            "The file may be damaged, pruned too far, or of another kind of model. Get it again, or check "
            "its family."
        )


def _canonical(key: str, component: str) -> str:
    if component == "vae":
        return modern_vae_name(key)
    return canonical_names([key], component)[key]


def modern_vae_name(key: str) -> str:
    """The present name of a VAE tensor that an older diffusers wrote."""
    for old, new in _VAE_RENAMES if ".attentions." in key else ():
        key = key.replace(old, new)
    return key


def file_sha256(path: Path) -> str:
    """sha256 of a file, 64 hex digits; remembered until its size or time changes."""
    stat = path.stat()
    return _hashed(path.resolve(), stat.st_size, stat.st_mtime_ns)


def files_sha256(root: Path, files: Iterable[Path]) -> str:
    """sha256 over the relative names and hashes of several files, in the order of their names."""
    lines = sorted(f"{path.relative_to(root).as_posix()} {file_sha256(path)}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@lru_cache(maxsize=256)
def _hashed(path: Path, _size: int, _modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
