"""What a base model is, from its header or configs alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difflora.errors import BaseModelError, ConfigError
from difflora.families import FAMILIES
from difflora.families import family as family_named
from difflora.families.family import Family, variant_folder
from difflora.families.headers import Header, read_header
from difflora.families.hub import download_configs
from difflora.families.model import BaseFacts
from difflora.families.places import File, Folder, HubId, locate
from difflora.families.skeleton import read_config

PREDICTION_TYPES = ("epsilon", "v_prediction")

SMALL = "shapes"
"""The variant of a model that is smaller than the real ones of its family."""

_LOADABLE = tuple(member for member in FAMILIES if member.loads)
_PREFIX = "model.diffusion_model."

# These have the names and shapes of SDXL, and other noise levels.
_EDM = {"edm_mean": "a Playground 2.5 model", "edm_vpred.sigma_max": "a CosXL model"}

# A fragment of a tensor's name, and what a file with such a tensor is.
_STRANGERS = (
    (
        ("lora_", ".lora", "hada_w", "lokr_w", "oft_blocks"),
        "an adapter; give the base that it was trained on",
    ),
    (("emb_params", "string_to_param", "clip_g"), "a textual-inversion embedding"),
    (("control_model.", "controlnet_"), "a ControlNet"),
    (("conditioner.embedders.0.model.",), "the SDXL refiner"),
    (("decoder.up", "decoder.mid"), "a VAE; give it as vae= beside a base"),
    (("down_blocks.",), "a UNet alone; give a whole checkpoint or a diffusers folder"),
)


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the caller knows better than the files: None leaves it to detection."""

    family: str | None = None
    prediction_type: str | None = None
    zero_terminal_snr: bool | None = None

    def __post_init__(self) -> None:
        if self.family is not None:
            family_named(self.family)
        if self.prediction_type is not None and self.prediction_type not in PREDICTION_TYPES:
            known = ", ".join(PREDICTION_TYPES)
            raise ConfigError(f"prediction_type={self.prediction_type!r} is not known; use one of: {known}")


def identify(
    base: str | Path,
    *,
    family: str | None = None,
    prediction_type: str | None = None,
    zero_terminal_snr: bool | None = None,
) -> BaseFacts:
    """What `base` is: read from a file's header or a folder's configs, without building the model; no sha256.

    Of a model on the Hub only the configs are fetched. An SD 2.x file that does not say so itself is taken
    for the v-prediction one at 768 pixels, as most are: its shapes are those of the other.
    Raises BaseModelError if it is no base of any family, ConfigError on an override that is not known.
    """
    overrides = Overrides(family, prediction_type, zero_terminal_snr)
    place = locate(base)
    if isinstance(place, HubId):
        place = Folder(download_configs(place.id), place.name)
    return place_facts(place, overrides)


def place_facts(place: Folder | File, overrides: Overrides) -> BaseFacts:
    """The facts of a base on this machine; see `identify`."""
    facts = _file_facts(place, overrides) if isinstance(place, File) else _folder_facts(place, overrides)
    if facts.zero_terminal_snr and facts.prediction_type == "epsilon":
        raise BaseModelError(
            f"{place.path}: epsilon prediction cannot be combined with a zero terminal signal-to-noise "
            "ratio: at the last step the noise says nothing of the image. Give "
            "prediction_type='v_prediction' or zero_terminal_snr=False."
        )
    return facts


def _folder_facts(place: Folder, overrides: Overrides) -> BaseFacts:
    found = family_named(overrides.family) if overrides.family else _folder_family(place.path)
    _require_loadable(place.path, found)
    unet = read_config(place.path / "unet" / "config.json")
    _require_text_to_image(place.path, channels=unet.get("in_channels", 4))
    scheduler = read_config(place.path / "scheduler" / "scheduler_config.json")
    _require_known_noise(place.path, scheduler)
    prediction = overrides.prediction_type or scheduler.get("prediction_type", "epsilon")
    if prediction not in PREDICTION_TYPES:
        raise BaseModelError(
            f"{place.path}: its scheduler predicts {prediction!r}, expected one of "
            f"{', '.join(PREDICTION_TYPES)}. Give prediction_type if the config is wrong."
        )
    width, cross = unet.get("block_out_channels", [0])[0], unet.get("cross_attention_dim")
    variant = _variant(found, width=width, cross=cross)
    if variant == SMALL:
        vae = read_config(place.path / "vae" / "config.json")
        resolution = _edge(unet) * 2 ** (len(vae.get("block_out_channels", [0])) - 1)
    else:
        resolution = _native_edge(variant, prediction)
    return BaseFacts(
        family=found.name,
        variant=variant,
        prediction_type=prediction,
        zero_terminal_snr=_first(
            overrides.zero_terminal_snr, bool(scheduler.get("rescale_betas_zero_snr", False))
        ),
        resolution=resolution,
        name=place.name,
    )


def _folder_family(path: Path) -> Family:
    name = str(read_config(path / "model_index.json").get("_class_name", "?"))
    for member in FAMILIES:
        # A folder saved from an image-to-image pipeline holds the same components.
        if name.replace("Img2Img", "") == member.pipeline_class:
            return member
    known = ", ".join(f"{member.pipeline_class} ({member.title})" for member in _LOADABLE)
    raise BaseModelError(f"{path} is a {name}, which is not supported. Use one of: {known}.")


def _require_loadable(path: Path, found: Family) -> None:
    if not found.loads:
        raise BaseModelError(
            f"{path}: bases of {found.title} cannot be loaded yet, so difflora neither trains nor generates "
            f"with them. Adapter files for {found.title} work, without a base: they are read, shown, merged, "
            "compared, resized, converted and written. For images use a base of "
            f"{' or '.join(member.title for member in _LOADABLE)}."
        )


def _file_facts(place: File, overrides: Overrides) -> BaseFacts:
    header = read_header(place.path)
    found = family_named(overrides.family) if overrides.family else _file_family(place.path, header)
    _require_loadable(place.path, found)
    first = header.shapes.get(f"{_PREFIX}input_blocks.0.0.weight", (0, 4))
    _require_text_to_image(place.path, channels=first[1])
    variant = _variant(found, width=first[0], cross=_cross_dim(header))
    if variant == SMALL:
        raise BaseModelError(
            f"{place.path}: its UNet is {first[0]} channels wide with a text width of {_cross_dim(header)}, "
            f"which is no model of {found.title}. A single file has no configs of its own: convert it to a "
            "diffusers folder."
        )
    prediction = overrides.prediction_type or _file_prediction(header, variant)
    return BaseFacts(
        family=found.name,
        variant=variant,
        prediction_type=prediction,
        zero_terminal_snr=_first(overrides.zero_terminal_snr, "ztsnr" in header.shapes),
        resolution=_native_edge(variant, prediction),
        name=place.name,
    )


def _file_family(path: Path, header: Header) -> Family:
    strangers = [what for name, what in _EDM.items() if name in header.shapes]
    for member in FAMILIES:
        if member.marker in header.shapes and not strangers:
            return member
    for member in FAMILIES:
        # Bases that are no U-Nets are often given as the denoiser alone, without a prefix.
        if not member.loads and member.marker.removeprefix(_PREFIX) in header.shapes:
            return member
    for fragments, what in _STRANGERS:
        if any(fragment in name for name in header.shapes for fragment in fragments):
            strangers.append(what)
    if strangers:
        raise BaseModelError(f"{path} is no base model of a known family: it looks like {strangers[0]}.")
    known = ", ".join(member.title for member in _LOADABLE)
    some = ", ".join(list(header.shapes)[:3]) or "no tensors at all"
    raise BaseModelError(f"{path} is no base model of a known family ({known}). It holds {some}.")


def _file_prediction(header: Header, variant: str) -> str:
    declared = header.metadata.get("modelspec.prediction_type", "")
    architecture = header.metadata.get("modelspec.architecture", "")
    if "v_pred" in header.shapes or declared.startswith("v") or architecture.endswith("768-v"):
        return "v_prediction"
    if declared == "epsilon" or architecture.endswith("v2-512"):
        return "epsilon"
    # Where both kinds are in the wild and nothing tells them apart, the more frequent one.
    has_both = variant_folder(variant, "v_prediction") != variant_folder(variant, "epsilon")
    return "v_prediction" if has_both else "epsilon"


def _cross_dim(header: Header) -> int | None:
    keys = (name for name in header.shapes if name.endswith("attn2.to_k.weight"))
    return next((header.shapes[name][-1] for name in keys if name.startswith(_PREFIX)), None)


def _variant(found: Family, *, width: int, cross: Any) -> str:
    for variant in found.variants:
        unet = read_config(variant_folder(variant, "epsilon") / "unet" / "config.json")
        if unet["block_out_channels"][0] == width and unet["cross_attention_dim"] == cross:
            return variant
    return SMALL


def _native_edge(variant: str, prediction: str) -> int:
    folder = variant_folder(variant, prediction)
    factor = 2 ** (len(read_config(folder / "vae" / "config.json")["block_out_channels"]) - 1)
    return _edge(read_config(folder / "unet" / "config.json")) * factor


def _edge(unet: Mapping[str, Any]) -> int:
    size = unet.get("sample_size") or 64
    return max(size) if isinstance(size, list) else int(size)


def _require_text_to_image(path: Path, *, channels: int) -> None:
    if channels != 4:
        raise BaseModelError(
            f"{path}: its UNet takes {channels} channels, expected 4. It looks like a model for inpainting "
            "or editing; use the text-to-image base that it was made from."
        )


def _require_known_noise(path: Path, scheduler: Mapping[str, Any]) -> None:
    name = str(scheduler.get("_class_name", ""))
    if name.startswith("EDM") or "sigma_data" in scheduler:
        raise BaseModelError(
            f"{path}: its scheduler is {name}, expected one with the noise levels of Stable Diffusion. It "
            "looks like Playground 2.5 or CosXL, which have the layers of SDXL but other noise levels, and "
            f"are not supported. Use a base of {' or '.join(member.title for member in _LOADABLE)}."
        )


def _first(override: bool | None, found: bool) -> bool:
    return found if override is None else override
