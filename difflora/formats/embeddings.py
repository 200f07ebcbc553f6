"""Words with vectors of their own (textual inversion): in files for themselves, and bundled with an adapter.

emb_params                 (vectors, dim)  Stable Diffusion 1 and 2; the word is the name of the file
clip_l, clip_g             (vectors, dim)  SDXL; the word is the name of the file
string_to_param.*          (vectors, dim)  emb_params, as A1111's .pt files call it
<cat>                      (dim) or (vectors, dim)  diffusers: the name of the tensor is the word
bundle_emb.NAME.emb_params ...  any of the first three beside the modules of a LoRA; NAME is the word
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor

from difflora.adapter import Tokens
from difflora.errors import AdapterFileError, listing
from difflora.families import Family
from difflora.formats.leaves import FACTOR_DTYPES
from difflora.formats.safe import MAX_NAME, clip

MAX_VECTORS = 75  # a word lies in one chunk of text

_BUNDLE = "bundle_emb."
_ONE_ENCODER = {"emb_params": "text_encoder", "string_to_param.*": "text_encoder", "clip_l": "text_encoder"}

# Family -> what a tensor is called -> the text encoder whose vectors it holds. The first name is written.
_ENCODERS: Mapping[str, Mapping[str, str]] = {
    "sd1": _ONE_ENCODER,
    "sdxl": {"clip_l": "text_encoder", "clip_g": "text_encoder_2"},
    "sd3": {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5": "text_encoder_3"},
    "flux": {"clip_l": "text_encoder", "t5": "text_encoder_2"},
}
_FOREIGN = ("llama", "gemma", "qwen")  # text encoders of models that are not supported
_OUTPUTS = tuple(
    f"{rest}_out" for rest in ("clip_l", "clip_g", "t5", *_FOREIGN)
)  # OneTrainer's output embeddings
_RESTS = frozenset({*(rest for names in _ENCODERS.values() for rest in names), *_FOREIGN, *_OUTPUTS})
_BUNDLED = re.compile(
    rf"{re.escape(_BUNDLE)}(?P<word>.+)\.(?P<rest>{'|'.join(re.escape(rest) for rest in sorted(_RESTS))})"
)
_BRACKETED = re.compile(r"<[^<>]+>")
_CLIP_WIDTHS = (768, 1024)  # of the text encoders of Stable Diffusion 1 and 2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Split(Generic[T]):
    """The tensors of a file (or whatever stands for them) by name: those of words, and the others."""

    words: Mapping[str, T]
    others: Mapping[str, T]


@dataclass(frozen=True, slots=True)
class Words:
    """What `words` found; `problems` maps tensors that make no word to the reason."""

    tokens: Tokens = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)


def split(tensors: Mapping[str, T]) -> Split[T]:
    """The tensors of an adapter file that are words bundled with it, apart from those that are modules'.

    A bare `emb_params`, as ai-toolkit writes, is one too.
    """
    mine = {name: value for name, value in tensors.items() if name.startswith(_BUNDLE) or name in _RESTS}
    return Split(mine, {name: value for name, value in tensors.items() if name not in mine})


def standalone(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a file of tensors of these shapes holds words and nothing else.

    A lone tensor whose name has no angle brackets is taken for a word of diffusers if it is as wide as the
    text encoders of Stable Diffusion 1 or 2.
    """
    if not shapes:
        return False
    if all(name in _RESTS or name.startswith(_BUNDLE) or _BRACKETED.fullmatch(name) for name in shapes):
        return True
    (name, shape), *more = shapes.items()
    return not more and "." not in name and len(shape) in (1, 2) and shape[-1] in _CLIP_WIDTHS


def family_of(names: Mapping[str, object]) -> str:
    """The name of the family that a file of words alone is for: SDXL where there are vectors of two CLIPs."""
    rests = {name.removeprefix(_BUNDLE).rpartition(".")[2] for name in names}
    if "t5" in rests:
        return "sd3" if "clip_g" in rests else "flux"
    return "sdxl" if "clip_g" in rests else "sd1"


def words(tensors: Mapping[str, Tensor], *, stem: str, family: Family) -> Words:
    """The words that these tensors make, each (vectors, dim) in the dtype of the file; raises nothing.

    `stem` is the name of the file without its ending: the word where the tensors name none. Values are not
    looked at: tensors on the meta device will do.
    """
    encoders = _ENCODERS.get(family.name, {})
    found: dict[str, dict[str, Tensor]] = {}
    problems: dict[str, str] = {}
    for name, vectors in tensors.items():
        if (named := _named(name, stem)) is None:
            expected = ", ".join(encoders) or "nothing"
            problems[clip(name)] = f"is no word: expected {_BUNDLE}WORD. and {expected}"
            continue
        word, rest = named
        component = "text_encoder" if rest == "" else encoders.get(rest)
        if reason := _problem(word, vectors):
            problems[clip(name)] = reason
        elif rest in _OUTPUTS:
            problems[clip(name)] = (
                f"is an output embedding of OneTrainer: the word {clip(word)!r} takes the place of what "
                f"{rest.removesuffix('_out')} makes of it, where vectors of a word are what goes in. Train "
                "it without the option Output Embedding, or save the adapter without bundled embeddings"
            )
        elif component is None:
            problems[clip(name)] = (
                f"vectors of a word for {rest}, which {family.name} ({family.title}) does not have; "
                f"expected {', '.join(encoders) or 'none'}"
            )
        elif component in found.setdefault(word, {}):
            problems[clip(name)] = f"the vectors of the word {word!r} for {component} are there twice"
        else:
            found[word][component] = vectors.reshape(-1, vectors.shape[-1])
    return Words({word: parts for word, parts in sorted(found.items()) if parts}, problems)


def leaves(tokens: Tokens, family: Family) -> dict[str, Tensor]:
    """The tensors of a file that holds `tokens` beside the modules of an adapter: the inverse of `words`.

    Raises AdapterFileError naming every word that cannot be written: vectors for a text encoder that the
    family does not have, or a name that no tensor may bear.
    """
    names = {component: rest for rest, component in reversed(list(_ENCODERS.get(family.name, {}).items()))}
    tensors: dict[str, Tensor] = {}
    problems: list[str] = []
    for word, parts in sorted(tokens.items()):
        for component, vectors in sorted(parts.items()):
            rest = names.get(component, "")
            name = f"{_BUNDLE}{word}.{rest}"
            if not rest:
                problems.append(f"the word {clip(word)!r}: {family.name} has no {component}")
            elif not name.isprintable() or len(name) > MAX_NAME or word != word.strip():
                problems.append(f"the word {clip(word)!r}: no tensor can be named after it")
            else:
                tensors[name] = vectors
    if problems:
        raise AdapterFileError(
            f"words that cannot be written (problems: {len(problems)}).\n{listing(problems)}\n"
            "Rename the word, or write the adapter for the family it was made for."
        )
    return tensors


def _named(name: str, stem: str) -> tuple[str, str] | None:
    """The word of a tensor, and which vectors they are: one of _RESTS, or "" for diffusers' own layout; None
    for a bundle's that says neither."""
    if bundled := _BUNDLED.fullmatch(name):
        return bundled["word"], bundled["rest"]
    if name.startswith(_BUNDLE):
        return None
    return (stem, name) if name in _RESTS else (name, "")


def _problem(word: str, vectors: Tensor) -> str | None:
    if word != word.strip() or not word:
        return f"{clip(word)!r} cannot be a word: it is blank, or begins or ends with a space"
    if vectors.dtype not in FACTOR_DTYPES:
        return f"the vectors of a word are {vectors.dtype}, expected float32, float16 or bfloat16"
    if vectors.ndim not in (1, 2):
        return f"the vectors of a word have the shape {tuple(vectors.shape)}, expected (vectors, dim)"
    if vectors.ndim == 2 and vectors.shape[0] > MAX_VECTORS:
        return f"a word of {vectors.shape[0]} vectors, expected at most {MAX_VECTORS}: it lies in one chunk"
    return None
