"""A base model without its weights: enough to say what fits it, in a moment and next to no memory."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from difflora.families import family as family_named
from difflora.families.detect import Overrides, place_facts
from difflora.families.family import Family, variant_folder
from difflora.families.hub import download_configs
from difflora.families.model import Model
from difflora.families.places import File, Folder, HubId, locate
from difflora.families.quiet import quiet
from difflora.families.schedule import base_scheduler
from difflora.families.single_file import tokenizers
from difflora.families.skeleton import read_config, skeleton


def outline(base: str | Path) -> Model:
    """The model of `base` (see `load`) on the meta device: its names, shapes, facts and tokenizers,
    for `fits` and `token_count`.

    Only configs and headers are read. Nothing can be computed with it, and no hash of its weights is known.
    Raises BaseModelError if it is no base model.
    """
    found = locate(base)
    configs = Folder(download_configs(found.id), found.name) if isinstance(found, HubId) else found
    facts = place_facts(configs, Overrides(None, None, None))
    member = family_named(facts.family)
    folder = (
        configs.path if isinstance(configs, Folder) else variant_folder(facts.variant, facts.prediction_type)
    )
    parts = SimpleNamespace()
    with quiet():
        for part in member.components:
            setattr(parts, part.name, skeleton(folder / part.name))
        for name, tokenizer in _tokenizers(configs, member, folder).items():
            setattr(parts, name, tokenizer)
        scheduler = read_config(folder / "scheduler" / "scheduler_config.json")
        parts.scheduler = base_scheduler(scheduler, facts)
    return Model(parts, member, facts=facts, source=str(base), device=torch.device("meta"))


def _tokenizers(found: Folder | File, member: Family, folder: Path) -> dict[str, Any]:
    from transformers import CLIPTokenizer

    if isinstance(found, File):
        return tokenizers(member, folder)
    names = [part.name.replace("text_encoder", "tokenizer") for part in member.components if part.is_text]
    return {name: CLIPTokenizer.from_pretrained(folder / name, local_files_only=True) for name in names}
