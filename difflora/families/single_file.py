"""Reads a base from a single-file checkpoint; configs and vocabulary come with this package: no network."""

from pathlib import Path
from typing import Any

import torch

from difflora.errors import BaseModelError
from difflora.families.family import Component, Family, Original, canonical_names
from difflora.families.folder import without_extras
from difflora.families.headers import Shapes, differences, read_header
from difflora.families.originals import VAE_PREFIXES, is_harmless, original_shapes
from difflora.families.skeleton import read_config, skeleton
from difflora.families.tokenizer import clip_tokenizer
from difflora.families.vae import read_vae_file, vae_dtype, vae_problems
from difflora.families.weights import require_nothing_wrong


def read_single_file(
    path: Path, family: Family, *, configs: Path, dtype: torch.dtype, vae: Any | None, scheduler: Any
) -> Any:
    """The pipeline of a checkpoint on the CPU with `scheduler`; `configs` is a folder without weights.

    `vae` takes the place of the file's own, which may then be missing.
    Raises BaseModelError naming every tensor that is missing, unknown or misshapen, before any data is read.
    """
    import diffusers

    require_nothing_wrong(
        path, checkpoint_problems(read_header(path).shapes, family, configs=configs, has_vae=vae is None)
    )
    if vae is None:
        own_dtype = vae_dtype(family, configs / "vae", dtype)
        vae = read_vae_file(path, config_folder=configs / "vae", dtype=own_dtype)
    pipeline_class = getattr(diffusers, family.pipeline_class)
    try:
        return pipeline_class.from_single_file(
            str(path),
            config=str(configs),
            local_files_only=True,
            torch_dtype=dtype,
            vae=vae,
            **tokenizers(family, configs),
            scheduler=scheduler,
            **without_extras(pipeline_class),
        )
    except (OSError, ValueError, TypeError, RuntimeError, AttributeError, KeyError) as error:
        raise BaseModelError(
            f"{path}: diffusers cannot build a {family.pipeline_class} from it: {error}. Convert it to a "
            "diffusers folder, or check that it belongs to this family."
        ) from error


def checkpoint_problems(shapes: Shapes, family: Family, *, configs: Path, has_vae: bool) -> list[str]:
    """One line for every tensor that a checkpoint lacks, has too many or misshapen, by `configs`."""
    expected: dict[str, tuple[int, ...]] = {}
    for part in family.components:
        expected |= _expected(part, shapes, configs / part.name)
    rest = {
        name: shape
        for name, shape in shapes.items()
        if not name.startswith(VAE_PREFIXES) and not is_harmless(name)
    }
    wrong = differences(expected, rest)
    return wrong + vae_problems(shapes, configs / "vae") if has_vae else wrong


def _expected(part: Component, shapes: Shapes, config_folder: Path) -> dict[str, tuple[int, ...]]:
    own = {name: tuple(value.shape) for name, value in skeleton(config_folder).state_dict().items()}
    canonical = {new: own[name] for name, new in canonical_names(own, part.name).items()}
    original = _original(part, shapes)
    return {
        original.prefix + name: shape for name, shape in original_shapes(canonical, original.naming).items()
    }


def _original(part: Component, shapes: Shapes) -> Original:
    """The layout that the file has most of the component in; the first one if it has none of it."""
    needed = [name for name in shapes if not is_harmless(name)]
    return max(part.originals, key=lambda original: sum(name.startswith(original.prefix) for name in needed))


def tokenizers(family: Family, configs: Path) -> dict[str, Any]:
    """The tokenizers of a checkpoint, which has none itself, by their names in the pipeline."""
    found = {}
    for part in family.components:
        if part.is_text:
            name = part.name.replace("text_encoder", "tokenizer")
            found[name] = clip_tokenizer(read_config(configs / name / "tokenizer_config.json")["pad_token"])
    return found
