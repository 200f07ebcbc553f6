"""What a file says about itself: kohya's `ss_*` keys and Stability AI's `modelspec.*` keys.

A1111, Forge, Civitai and others sort, filter and caption adapters by them. Written are no times, random ids
or private paths, so that the same run gives the same file.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PureWindowsPath

from difflora.adapter import Adapter, AdapterMeta
from difflora.formats.format import Metadata
from difflora.formats.modelspec import THUMBNAIL, is_thumbnail
from difflora.formats.network import network_facts, widths

MAX_LABEL = 200
SPEC_VERSION = "1.0.1"

# Of the run or the machine rather than of the adapter, or computed anew for each file.
_LEFT_OUT = frozenset(
    {
        "ss_session_id",
        "ss_training_started_at",
        "ss_training_finished_at",
        "ss_network_dim",
        "ss_network_alpha",
        "ss_network_args",
        "ss_network_module",
        "ss_dataset_dirs",
        "ss_reg_dataset_dirs",
        "modelspec.date",
        "modelspec.hash_sha256",
    }
)
_CONDITIONED = (".attn2.to_k", ".attn2.to_v")
_CARRIED = ("ss_", "modelspec.")
# A path goes on after its first folder, drive or host, where the faces among tags, such as \m/, end.
_ABSOLUTE_PATH = re.compile(
    r"""(?:^|[\s"'=,(\[])(?:/[^/\\\s"']+/|[A-Za-z]:[\\/]+|\\{2,}[\w.-]+\\+|~/)[\w.]"""
)


@dataclass(frozen=True, slots=True)
class Base:
    """What other programs call a base model."""

    version: str
    architecture: str
    implementation: str
    resolution: str


_STABILITY = "https://github.com/Stability-AI/generative-models"
_BASES: Mapping[str, Base] = {
    "sd1": Base("sd_v1", "stable-diffusion-v1", "diffusers", "512x512"),
    "sd2": Base("sd_v2", "stable-diffusion-v2-512", "diffusers", "512x512"),
    "sd2-v": Base("sd_v2_v", "stable-diffusion-v2-768-v", "diffusers", "768x768"),
    "sdxl": Base("sdxl_base_v1-0", "stable-diffusion-xl-v1-base", _STABILITY, "1024x1024"),
    "sd3": Base("medium", "stable-diffusion-3-medium", _STABILITY, "1024x1024"),
    "flux": Base("flux1", "flux-1-dev", "https://github.com/black-forest-labs/flux", "1024x1024"),
}
# Families with several models, which only the file itself tells apart, by how their names begin.
_STATED = {"sd3": "stable-diffusion-3", "flux": "flux-1-"}


def meta_of(
    metadata: Metadata, *, stem: str, family: str, data_hash: str = "", scales: str = ""
) -> AdapterMeta:
    """What a file's metadata says about an adapter; `stem` is its name where the metadata has none."""
    title = metadata.get("modelspec.title") or metadata.get("ss_output_name") or stem
    return AdapterMeta(
        name=_label(title) or "adapter",
        family=family,
        base=_label(metadata.get("ss_sd_model_name", "")),
        trigger=_label(metadata.get("modelspec.trigger_phrase", "")),
        training=dict(metadata),
        file_hash=data_hash,
        scales=scales,
    )


def metadata_of(adapter: Adapter, family: str) -> dict[str, str]:
    """The metadata of a file that holds `adapter`, less the hashes.

    Facts of training and descriptions that came with the adapter stay, without paths of the machine they
    are from.
    """
    facts = _carried(adapter.meta.training)
    version = facts.get("ss_base_model_version", "")
    v_prediction = facts.get("modelspec.prediction_type") == "v" or version.endswith("_v")
    base = _BASES[_base(family, adapter, facts, v_prediction=v_prediction)]
    architecture, version = f"{base.architecture}/lora", base.version
    if family in _STATED and facts.get("modelspec.architecture", "").startswith(_STATED[family]):
        architecture = facts["modelspec.architecture"]
        version = facts.get("ss_base_model_version", version)
    computed = {
        "ss_base_model_version": "sd_v1_v" if version == "sd_v1" and v_prediction else version,
        "ss_v2": str(version.startswith("sd_v2")),
        "modelspec.sai_model_spec": SPEC_VERSION,
        "modelspec.architecture": architecture,
        "modelspec.implementation": base.implementation,
    }
    defaults = {"modelspec.resolution": base.resolution}
    if v_prediction:
        defaults["modelspec.prediction_type"] = "v"
    network = network_facts(adapter.modules) if adapter.modules else {}
    return {**defaults, **facts, **computed, **_names(adapter.meta, facts), **network}


def _names(meta: AdapterMeta, facts: Metadata) -> dict[str, str]:
    """Title, alias, base and trigger. An adapter that was renamed since it was read has the one new name."""
    kept = {key: facts[key] for key in ("modelspec.title", "ss_output_name") if key in facts}
    name = _private_path(meta.name)
    if meta.name in (_label(value) for value in kept.values()):
        names = {"modelspec.title": name, "ss_output_name": name, **kept}
    else:
        names = {"modelspec.title": name, "ss_output_name": name}
    if meta.base:
        names["ss_sd_model_name"] = _private_path(meta.base)
    if meta.trigger:
        names["modelspec.trigger_phrase"] = meta.trigger
        # Where A1111 and Civitai look for the words an adapter was trained on.
        hint = json.dumps({name: {meta.trigger: 1}}, ensure_ascii=False)
        names["ss_tag_frequency"] = facts.get("ss_tag_frequency", hint)
    return names


def _base(family: str, adapter: Adapter, facts: Metadata, *, v_prediction: bool) -> str:
    """The row of _BASES; SD 2.x is known by the width of its text, or by what the trainer wrote."""
    if family != "sd1":
        return family
    stated = facts.get("ss_v2") == "True" or facts.get("modelspec.architecture", "").startswith(
        "stable-diffusion-v2"
    )
    conditioned = {path: kinds for path, kinds in adapter.modules.items() if path.endswith(_CONDITIONED)}
    if stated or 1024 in widths(conditioned).values():
        return "sd2-v" if v_prediction else "sd2"
    return family


def _carried(training: Metadata) -> dict[str, str]:
    kept = {}
    for key, value in training.items():
        if key == THUMBNAIL and is_thumbnail(value):
            kept[key] = value
        elif key.startswith(_CARRIED) and key not in _LEFT_OUT and key != THUMBNAIL:
            scrubbed = _private_path(value)
            if not any(_ABSOLUTE_PATH.search(text) for text in _texts(scrubbed)):
                kept[key] = scrubbed
    return kept


def _texts(value: str) -> list[str]:
    """Every text in a value that is JSON, names among them, as it reads without escapes; else the value."""
    try:
        left = [json.loads(value, object_pairs_hook=list)]  # as pairs, since a name may be there twice
    except (ValueError, RecursionError):
        return [value]
    texts: list[str] = []
    while left:
        match left.pop():
            case str() as text:
                texts.append(text)
            case list() | tuple() as items:
                left += items
            case _:
                pass
    return texts


def _private_path(value: str) -> str:
    """The last part of a value that is a path from the root of a disk; any other value as it is."""
    return PureWindowsPath(value).name if _ABSOLUTE_PATH.match(value) else value  # takes both kinds of slash


def _label(text: str) -> str:
    """One printable line."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:MAX_LABEL]
