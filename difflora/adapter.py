"""An adapter, and a weighted stack of them."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from difflora.errors import AdapterError, listing
from difflora.kinds import Kind

Tokens = Mapping[str, Mapping[str, Tensor]]
"""Word -> text encoder ("text_encoder", "text_encoder_2") -> the vectors (vectors, dim) it stands for."""


@dataclass(frozen=True, slots=True)
class AdapterMeta:
    """What is known about an adapter beside its tensors.

    `training` holds facts under the names used in files (`ss_learning_rate`, `modelspec.title` ...); values
    are strings. `file_hash` is the sha256 of the tensor data of the file it was read from (Civitai's AutoV3,
    untruncated); `scales` is a digest of how strongly modules act where that file says so in its metadata or
    configuration, "" if nothing but tensors says so or it is fully.
    """

    name: str = "adapter"
    family: str = ""
    base: str = ""
    trigger: str = ""
    training: Mapping[str, str] = field(default_factory=dict)
    file_hash: str = ""
    scales: str = ""


@dataclass(frozen=True, eq=False)
class Adapter:
    """Changes of named modules, and new words.

    `modules` maps a path such as `unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q` to the
    kinds that change it; `tokens` are the words it adds to the prompt's vocabulary. Compare two adapters with
    `same`.
    """

    modules: Mapping[str, tuple[Kind, ...]]
    meta: AdapterMeta = AdapterMeta()
    tokens: Tokens = field(default_factory=dict)

    def delta(self, path: str, weight: Tensor | None = None) -> Tensor:
        """ΔW of one module in float32: the sum over its kinds; see Kind.delta for the shape.

        Raises KeyError if the adapter does not change `path`.
        """
        first, *rest = self.modules[path]
        total = first.delta(weight)
        for kind in rest:
            total += kind.delta(weight)
        return total

    @cached_property
    def data_hash(self) -> str:
        """What this adapter is known by: 64 hex digits.

        That of its file if it was read from one (see `identity`), else `content_hash`.
        """
        known = self.meta.file_hash
        return identity(known, self.meta.scales) if known else self.content_hash

    @cached_property
    def content_hash(self) -> str:
        """sha256 over paths, kinds, shapes, dtypes and tensor bytes: the same in every file layout."""
        digest = hashlib.sha256()
        for label, tensor in self._labelled_tensors():
            digest.update(f"{label} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _labelled_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for path in sorted(self.modules):
            for index, kind in enumerate(self.modules[path]):
                for leaf, tensor in sorted(kind.tensors().items()):
                    yield f"{path} {index} {kind.name} {leaf}", tensor
        for word in sorted(self.tokens):
            for component, vectors in sorted(self.tokens[word].items()):
                yield f"token {word} {component}", vectors


def identity(file_hash: str, scales: str) -> str:
    """What the adapter of a file is known by; see AdapterMeta for the two.

    The sha256 of the tensor data (AutoV3) itself, unless the same tensors act at another strength in another
    file: then the sha256 of both.
    """
    return hashlib.sha256(f"{file_hash} {scales}".encode()).hexdigest() if scales else file_hash


def same(a: Adapter, b: Adapter) -> bool:
    """Whether two adapters hold the same modules, kinds, factors and tokens, bit for bit; metadata is
    ignored."""
    return a.content_hash == b.content_hash


@dataclass(frozen=True, slots=True)
class Weight:
    """How strongly an adapter acts: on the UNet, and on every text encoder."""

    unet: float = 1.0
    text: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.unet) and math.isfinite(self.text)):
            raise AdapterError(f"a weight must be a finite number, got unet={self.unet}, text={self.text}")

    def of(self, path: str) -> float:
        """The weight of the component that `path` belongs to."""
        return self.text if path.startswith("text_encoder") else self.unet

    def __add__(self, other: "Weight") -> "Weight":
        return Weight(self.unet + other.unet, self.text + other.text)


@dataclass(frozen=True, eq=False)
class Stack:
    """Adapters with their weights, in the order given. `Stack([(a, 0.7), (b, Weight(unet=0.4, text=0.0))])`.

    A bare number is a weight for the UNet and the text encoders alike.
    """

    entries: tuple[tuple[Adapter, Weight], ...]

    def __init__(self, entries: Sequence[tuple[Adapter, float | Weight]] = ()) -> None:
        fixed = tuple((adapter, as_weight(weight)) for adapter, weight in entries)
        object.__setattr__(self, "entries", fixed)

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[tuple[Adapter, Weight]]:
        return iter(self.entries)

    def with_weights(self, weights: Sequence[float | Weight]) -> "Stack":
        """The same adapters with other weights. Raises AdapterError if their number differs."""
        if len(weights) != len(self.entries):
            raise AdapterError(
                f"{len(weights)} weights were given for a stack of {len(self.entries)} adapters"
            )
        pairs = zip(self.entries, weights, strict=True)
        return replace(self, entries=tuple((adapter, as_weight(weight)) for (adapter, _), weight in pairs))

    def canonical(self) -> "Stack":
        """One entry an adapter, in the order of data hashes: the order in which sums are taken.

        The same adapter given twice counts once with the sum of its weights.
        """
        merged: dict[str, tuple[Adapter, Weight]] = {}
        for adapter, weight in self.entries:
            known = merged.get(adapter.data_hash)
            merged[adapter.data_hash] = (adapter, weight if known is None else known[1] + weight)
        return Stack([merged[key] for key in sorted(merged)])

    def paths(self) -> tuple[str, ...]:
        """Every module that an adapter of the stack changes, sorted."""
        return tuple(sorted({path for adapter, _ in self.entries for path in adapter.modules}))

    def delta(self, path: str, weight: Tensor) -> Tensor:
        """Σ weight · ΔW of one module in float32, in the shape of `weight`, summed in canonical order.

        Adapters at weight 0 are left out, so that 0 equals absent bit for bit.
        """
        total = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for adapter, dial in self.canonical():
            if path in adapter.modules and dial.of(path) != 0.0:
                total.add_(adapter.delta(path, weight), alpha=dial.of(path))
        return total

    def tokens(self) -> Tokens:
        """The words of every adapter whose text weight is not 0, sorted.

        Their vectors are taken as they are at any such weight: a new word has no vectors in the base to lie
        between. What dials a word is its attention in the prompt, `(word:0.7)`.

        Raises AdapterError if one word has different vectors in two adapters; upper and lower case are alike,
        as they are to CLIP.
        """
        dials = {adapter.data_hash: weight for adapter, weight in self.canonical()}
        found: dict[str, tuple[str, Adapter]] = {}
        problems = []
        for adapter, _ in self.entries:
            if dials[adapter.data_hash].text == 0.0:
                continue
            for word, vectors in adapter.tokens.items():
                known, owner = found.setdefault(word.lower(), (word, adapter))
                if not _same_vectors(owner.tokens[known], vectors):
                    problems.append(f"{word!r}: in {owner.meta.name!r} and in {adapter.meta.name!r}")
        if problems:
            raise AdapterError(
                f"words that two adapters of one stack mean differently:\n{listing(problems)}\n"
                "Leave one of the adapters out, or give it a text weight of 0."
            )
        return {word: owner.tokens[word] for word, owner in sorted(found.values(), key=lambda item: item[0])}


def _same_vectors(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


def as_weight(weight: float | Weight) -> Weight:
    """A bare number as a Weight for the UNet and the text encoders alike."""
    return weight if isinstance(weight, Weight) else Weight(float(weight), float(weight))
