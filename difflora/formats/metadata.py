"""What a file says about itself: kohya's `ss_*` keys and Stability AI's `modelspec.*` keys.

A1111, Forge, Civitai and others sort, filter and caption adapters by them. Written are no times, random ids
or private paths, so that the same run gives the same file.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PureWindowsPath

from difflora.adapter import Adapter, AdapterMeta
from difflora.formats.format import Metadata
from difflora.kinds import LoRA

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
        "modelspec.thumbnail",
    }
)
_CARRIED = ("ss_", "modelspec.")
_ABSOLUTE_PATH = re.compile(r"""(?:^|[\s"'=,(\[])(?:/[^/\s"']+/|[A-Za-z]:[\\/]|\\\\|~/)""")


@dataclass(frozen=True, slots=True)
class Base:
    """What other programs call a base model."""

    version: str
    architecture: str
    implementation: str
    resolution: str


_BASES: Mapping[str, Base] = {
    "sd1": Base("sd_v1", "stable-diffusion-v1", "diffusers", "512x512"),
    "sd2": Base("sd_v2", "stable-diffusion-v2-512", "diffusers", "512x512"),
    "sd2-v": Base("sd_v2_v", "stable-diffusion-v2-768-v", "diffusers", "768x768"),
    "sdxl": Base(
        "sdxl_base_v1-0",
        "stable-diffusion-xl-v1-base",
        "https://github.com/Stability-AI/generative-models",
        "1024x1024",
    ),
}


def meta_of(metadata: Metadata, *, stem: str, family: str, data_hash: str) -> AdapterMeta:
    """What a file's metadata says about an adapter; `stem` is its name where the metadata has none."""
    title = metadata.get("modelspec.title") or metadata.get("ss_output_name") or stem
    return AdapterMeta(
        name=_label(title) or "adapter",
        family=family,
        base=_label(metadata.get("ss_sd_model_name", "")),
        trigger=_label(metadata.get("modelspec.trigger_phrase", "")),
        training=dict(metadata),
        file_hash=data_hash,
    )


def metadata_of(adapter: Adapter, family: str, modules: Mapping[str, LoRA]) -> dict[str, str]:
    """The metadata of a file that holds `adapter`, less the hashes; `modules` maps its paths to its kinds.

    Facts of training and descriptions that came with the adapter stay, without paths of the machine they
    are from.
    """
    facts = _carried(adapter.meta.training)
    version = facts.get("ss_base_model_version", "")
    v_prediction = facts.get("modelspec.prediction_type") == "v" or version.endswith("_v")
    base = _BASES[_base(family, modules, facts, v_prediction=v_prediction)]
    computed = {
        "ss_base_model_version": "sd_v1_v" if base.version == "sd_v1" and v_prediction else base.version,
        "ss_v2": str(base.version.startswith("sd_v2")),
        "modelspec.sai_model_spec": SPEC_VERSION,
        "modelspec.architecture": f"{base.architecture}/lora",
        "modelspec.implementation": base.implementation,
    }
    defaults = {"modelspec.resolution": base.resolution}
    if v_prediction:
        defaults["modelspec.prediction_type"] = "v"
    return {**defaults, **facts, **computed, **_names(adapter.meta, facts), **_network(modules)}


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


def _network(modules: Mapping[str, LoRA]) -> dict[str, str]:
    """Ranks and alphas as kohya states them: of linear layers and 1×1 convolutions, and of larger ones."""
    larger = {path for path, lora in modules.items() if lora.down.ndim == 4 and lora.down.shape[2:] != (1, 1)}
    dim, alpha = _common(
        lora for path, lora in modules.items() if path not in larger or len(larger) == len(modules)
    )
    arguments: dict[str, str] = {}
    if larger and len(larger) < len(modules):
        arguments["conv_dim"], arguments["conv_alpha"] = _common(modules[path] for path in larger)
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": dim,
        "ss_network_alpha": alpha,
        "ss_network_args": json.dumps(arguments),
    }


def _common(modules: Iterable[LoRA]) -> tuple[str, str]:
    pairs = {(lora.rank, round(lora.scale * lora.rank, 6)) for lora in modules}
    ranks, alphas = {rank for rank, _ in pairs}, {alpha for _, alpha in pairs}
    dim, alpha = (str(*values) if len(values) == 1 else "Dynamic" for values in (ranks, alphas))
    return dim, alpha


def _base(family: str, modules: Mapping[str, LoRA], facts: Metadata, *, v_prediction: bool) -> str:
    """The row of _BASES; SD 2.x is known by the width of its text, or by what the trainer wrote."""
    widths = {
        lora.down.shape[1] for path, lora in modules.items() if path.endswith((".attn2.to_k", ".attn2.to_v"))
    }
    stated = facts.get("ss_v2") == "True" or facts.get("modelspec.architecture", "").startswith(
        "stable-diffusion-v2"
    )
    if family == "sd1" and (1024 in widths or stated):
        return "sd2-v" if v_prediction else "sd2"
    return family


def _carried(training: Metadata) -> dict[str, str]:
    kept = {}
    for key, value in training.items():
        if key.startswith(_CARRIED) and key not in _LEFT_OUT:
            scrubbed = _private_path(value)
            if not _ABSOLUTE_PATH.search(scrubbed):
                kept[key] = scrubbed
    return kept


def _private_path(value: str) -> str:
    """The last part of a value that is a path from the root of a disk; any other value as it is."""
    return PureWindowsPath(value).name if _ABSOLUTE_PATH.match(value) else value  # takes both kinds of slash


def _label(text: str) -> str:
    """One printable line."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:MAX_LABEL]
