"""Which family of base models an adapter file was made for: from its names, then shapes, then metadata."""

from collections.abc import Collection, Mapping

from difflora.families import FAMILIES, Family
from difflora.formats.format import Format, Metadata

# Width of the text condition -> family: the input of every cross-attention key and value.
_CONDITION_WIDTHS = {768: "sd1", 1024: "sd1", 2048: "sdxl"}
_CONDITIONED = (".attn2.to_k", ".attn2.to_v")

# How other programs name base models, by how the value begins.
_VERSIONS = {"sd_1": "sd1", "sd_2": "sd1", "sd_v1": "sd1", "sd_v2": "sd1", "sdxl": "sdxl"}
_ARCHITECTURES = {
    "stable-diffusion-v1": "sd1",
    "stable-diffusion-v2": "sd1",
    "stable-diffusion-xl": "sdxl",
}

# Words in module names of base models that are not supported.
_STRANGERS = {
    "double_blocks": "Flux",
    "single_blocks": "Flux",
    "single_transformer_blocks": "Flux",
    "joint_blocks": "Stable Diffusion 3",
    "transformer.transformer_blocks": "Stable Diffusion 3 or Flux",
    "lora_prior_": "Stable Cascade",
}


def detect(
    layout: type[Format], modules: Collection[str], widths: Mapping[str, int], metadata: Metadata
) -> Family | None:
    """The family that knows the most of `modules`; None if none knows any.

    `widths` gives each module's number of input features. Where families know equally many, the width of
    the text condition decides, then what the metadata says, then the order of FAMILIES.
    """
    known = known_modules(layout, modules)
    best = max(known.values(), default=0)
    if best == 0:
        return None
    candidates = [family for family in FAMILIES if known[family.name] == best]
    for hint in (_by_width(layout, candidates[0], widths), _by_metadata(metadata)):
        chosen = [family for family in candidates if family.name == hint]
        candidates = chosen or candidates
    return candidates[0]


def known_modules(layout: type[Format], modules: Collection[str]) -> dict[str, int]:
    """Family name -> how many of the modules, as a file names them, that family has."""
    return {
        family.name: sum(layout.path(module, family) is not None for module in modules) for family in FAMILIES
    }


def family_of_paths(paths: Collection[str], widths: Mapping[str, int], metadata: Metadata) -> Family | None:
    """The family that has all of `paths`; None if there is none. The widths are those of `detect`."""
    candidates = [family for family in FAMILIES if family.paths.issuperset(paths)]
    for hint in (_width_hint(widths), _by_metadata(metadata)):
        chosen = [family for family in candidates if family.name == hint]
        candidates = chosen or candidates
    return candidates[0] if candidates else None


def stranger(names: Collection[str]) -> str | None:
    """The unsupported base model that these tensor names are known from."""
    for word, title in _STRANGERS.items():
        if any(word in name for name in names):
            return title
    return None


def _by_width(layout: type[Format], family: Family, widths: Mapping[str, int]) -> str | None:
    named = ((layout.path(module, family), width) for module, width in widths.items())
    return _width_hint({path: width for path, width in named if path})


def _width_hint(widths: Mapping[str, int]) -> str | None:
    found = {_CONDITION_WIDTHS.get(width) for path, width in widths.items() if path.endswith(_CONDITIONED)}
    return found.pop() if len(found) == 1 else None


def _by_metadata(metadata: Metadata) -> str | None:
    for key, values in (("modelspec.architecture", _ARCHITECTURES), ("ss_base_model_version", _VERSIONS)):
        for start, family in values.items():
            if metadata.get(key, "").startswith(start):
                return family
    return None
