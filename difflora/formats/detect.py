"""Which family of base models an adapter file was made for: from its names, then shapes, then metadata."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache, partial
from itertools import chain

from difflora.families import FAMILIES, Family
from difflora.formats.format import Format, Metadata

# (part of a path, the number of input features of such a module -> family). Of UNets the width of the text
# condition, which goes into every cross-attention; of transformers their own, and that of the feed-forward.
_WIDTHS: tuple[tuple[str, Mapping[int, str]], ...] = (
    (".attn2.to_k", {768: "sd1", 1024: "sd1", 2048: "sdxl"}),
    (".attn2.to_v", {768: "sd1", 1024: "sd1", 2048: "sdxl"}),
    ("transformer.transformer_blocks.", {3072: "flux", 12288: "flux"}),
    ("transformer.transformer_blocks.", dict.fromkeys((1536, 6144, 2432, 9728), "sd3")),
    # OpenCLIP-H of SD 2.x; CLIP-L is in all the others.
    ("text_encoder.text_model.encoder.", {1024: "sd1", 4096: "sd1"}),
)

# How other programs name base models, by how the value begins.
_BEGINNINGS: Mapping[str, Mapping[str, str]] = {
    "modelspec.architecture": {
        "stable-diffusion-v1": "sd1",
        "stable-diffusion-v2": "sd1",
        "stable-diffusion-xl": "sdxl",
        "stable-diffusion-3": "sd3",
        "stable-diffusion-v3": "sd3",
        "flux-1": "flux",
        "Flux.1": "flux",
    },
    "ss_base_model_version": {
        "sd_1": "sd1",
        "sd_2": "sd1",
        "sd_v1": "sd1",
        "sd_v2": "sd1",
        "sdxl": "sdxl",
        "flux1": "flux",
        # kohya gives the size alone.
        "medium": "sd3",
        "5-medium": "sd3",
        "5-large": "sd3",
        "sd3": "sd3",
    },
    "ss_network_module": {"networks.lora_flux": "flux", "networks.lora_sd3": "sd3"},
}

# Words in flattened module names of base models that are not supported.
_STRANGERS = {
    "lora_prior_": "Stable Cascade",
    "stream_modulation": "Flux.2",
    "ff_linear_in": "Flux.2",
    "attn_to_qkv_mlp_proj": "Flux.2",
    "_img_mod_1": "Qwen-Image",
    "_img_mlp_net_": "Qwen-Image",
    "noise_refiner": "Z-Image or Lumina 2",
    "context_refiner": "Z-Image or Lumina 2",
    "attention_to_q": "Z-Image",
    "_cross_attn_": "a video model such as Wan",
}


def detect(
    layout: type[Format], modules: Collection[str], widths: Mapping[str, int], metadata: Metadata
) -> Family | None:
    """The family that knows the most of `modules`; None if none knows any, or some are of a known stranger.

    `widths` gives modules' numbers of input features. Where families know equally many, the widths decide,
    then what the metadata says, then whose spelling it is, then the order of FAMILIES.
    """
    candidates = those_that_know_most(layout, modules)
    for hint in (
        partial(_by_width, layout, widths),
        partial(_by_metadata, metadata),
        partial(_by_spelling, layout, modules),
    ):
        candidates = _narrowed(candidates, hint)
    return candidates[0] if candidates else None


def those_that_know_most(layout: type[Format], modules: Collection[str]) -> list[Family]:
    """The families that know as many of `modules` as any; none if that is none, or some are of a stranger."""
    known = known_modules(layout, modules)
    best = max(known.values(), default=0)
    if best == 0 or (best < len(modules) and stranger(modules)):
        return []
    return [family for family in FAMILIES if known[family.name] == best]


def known_modules(layout: type[Format], modules: Collection[str]) -> dict[str, int]:
    """Family name -> how many of the modules, as a file names them, that family has."""
    counts = Counter(chain.from_iterable(_known_to(layout, module) for module in modules))
    return {family.name: counts[family.name] for family in FAMILIES}


@lru_cache(maxsize=1 << 15)
def _known_to(layout: type[Format], module: str) -> tuple[str, ...]:
    """The names of the families that have such a module."""
    return tuple(family.name for family in FAMILIES if layout.path(module, family) is not None)


def family_of_paths(paths: Collection[str], widths: Mapping[str, int], metadata: Metadata) -> Family | None:
    """The family that has all of `paths`; None if there is none. The widths are those of `detect`."""
    candidates = [family for family in FAMILIES if family.paths.issuperset(paths)]
    for name in (_width_hint(widths.items()), _by_metadata(metadata, candidates)):
        candidates = [family for family in candidates if family.name == name] or candidates
    return candidates[0] if candidates else None


def stranger(names: Collection[str]) -> str | None:
    """The unsupported base model that these tensor or module names are known from."""
    flat = [name.replace(".", "_") for name in names]
    for word, title in _STRANGERS.items():
        if any(word in name for name in flat):
            return title
    return None


def _narrowed(candidates: list[Family], hint: Callable[[list[Family]], str | None]) -> list[Family]:
    """Those of the candidates that `hint` names, if there are any; it is not asked where one is left."""
    if len(candidates) < 2:
        return candidates
    name = hint(candidates)
    return [family for family in candidates if family.name == name] or candidates


def _by_width(layout: type[Format], widths: Mapping[str, int], candidates: list[Family]) -> str | None:
    return _width_hint(
        (path, width)
        for module, width in widths.items()
        for family in candidates
        if (path := layout.path(module, family))
    )


def _width_hint(widths: Iterable[tuple[str, int]]) -> str | None:
    found = {
        families[width]
        for path, width in widths
        for part, families in _WIDTHS
        if part in path and width in families
    }
    return found.pop() if len(found) == 1 else None


def _by_metadata(metadata: Metadata, candidates: list[Family]) -> str | None:
    for key, beginnings in _BEGINNINGS.items():
        for start, family in beginnings.items():
            if metadata.get(key, "").startswith(start) and any(one.name == family for one in candidates):
                return family
    return None


def _by_spelling(layout: type[Format], modules: Collection[str], candidates: list[Family]) -> str | None:
    """The first family that writes one of these names so itself: `lora_te_` is SD 1, `lora_te1_` is not."""
    for family in candidates:
        paths = {module: layout.path(module, family) for module in modules}
        if any(path and family.kohya_name(path) == module for module, path in paths.items()):
            return family.name
    return None
