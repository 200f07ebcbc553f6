"""Prompts to text embeddings: attention weights, BREAK, any length, clip skip, words that adapters add.

Each text encoder sees chunks of max_length - 2 tokens (75 for CLIP) between its begin and end tokens; the
embeddings of the chunks are put one after another. A short plain prompt gives exactly what diffusers'
`encode_prompt` gives. Facts of emphasis, BREAK and the comma rule: the behaviour of stable-diffusion-webui
1.10.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from difflora.adapter import Tokens
from difflora.apply import attach
from difflora.errors import ConfigError, FitError, listing
from difflora.prompts import Break, Segment, parse_attention, parse_tags
from difflora.vocabulary import embedding_path, pieces, word_problem

if TYPE_CHECKING:
    from difflora.families.family import Component
    from difflora.families.model import Model

Text = str | Sequence[Segment | Break]
"""A prompt with its syntax, or the pieces it stands for: `[Segment(caption)]` takes a caption literally."""

COMMA_BACKTRACK = 20
"""How many tokens back a comma may lie for the text after it to move whole into the next chunk."""

MEAN_SHARE = 0.02
"""Below this |mean| / rms a mean is noise, and no quotient of two such is taken; see `_emphasised`."""


@dataclass(frozen=True, eq=False, slots=True)
class EncoderTokens:
    """What one text encoder is given: `ids` int64 and emphasis `weights` float32, (B, k, L), on the CPU.

    `places` (n, 3) int64 are the (prompt, chunk, token) that `vectors` (n, dim) take in place of what the
    encoder has for their ids; None where there are no words with vectors of their own.
    """

    component: str
    ids: Tensor
    weights: Tensor
    places: Tensor
    vectors: Tensor | None


@dataclass(frozen=True, eq=False, slots=True)
class TokenChunks:
    """B prompts as k chunks of L tokens, once for each text encoder."""

    encoders: tuple[EncoderTokens, ...]

    @property
    def chunks(self) -> int:
        return self.encoders[0].ids.shape[1]


@dataclass(frozen=True, eq=False, slots=True)
class TextConditioning:
    """What conditions the UNet: `hidden` (B, k·L, dim), and `pooled` (B, dim) where the family uses one."""

    hidden: Tensor
    pooled: Tensor | None


@torch.no_grad()
def encode(
    model: Model,
    prompts: Sequence[Text],
    *,
    clip_skip: int = 1,
    chunks: int | None = None,
    tokens: Sequence[Tokens] = (),
) -> TextConditioning:
    """Text embeddings of `prompts`, in the dtype of the text encoders, on the model's device.

    All prompts get as many chunks as the longest needs, or `chunks` if that is more: shorter ones are
    filled up with empty chunks. `clip_skip` counts from the last layer of the encoder as ComfyUI does: 1 is
    the family's own layer; 2 the one before in SD 1, and the family's own still in SDXL and SD 2, which were
    trained on that one (A1111 does not skip there at all). `tokens` are the words that each prompt knows
    beside those of the model (`Stack.tokens`), one vocabulary a prompt, or none at all.

    Raises PromptError for syntax, ConfigError for a clip skip beyond the encoder's layers, FitError for a
    word that is not of this model.
    """
    cut = token_chunks(model, prompts, chunks=chunks, tokens=tokens)
    return encode_tokens(model, cut, clip_skip=clip_skip)


def token_chunks(
    model: Model, texts: Sequence[Text], *, chunks: int | None = None, tokens: Sequence[Tokens] = ()
) -> TokenChunks:
    """`texts` cut into chunks for each text encoder, all into as many as the longest needs, or `chunks`.

    Each vector of a word of `tokens` counts as one token; a word is never cut, but begins a chunk if it
    does not fit into the last.

    Raises PromptError for syntax, ConfigError for an empty sequence, FitError for a word that is not of this
    model.
    """
    if not texts:
        raise ConfigError(
            "nothing to encode: an empty list of prompts was given; for no text give one empty prompt"
        )
    known = tokens or [{}] * len(texts)
    _require_words(model, known)
    drafts = {
        part.name: [
            _cut(_Reader(_tokenizer(model, part), part.name, words), text)
            for text, words in zip(texts, known, strict=True)
        ]
        for part in _text_components(model)
    }
    count = max(chunks or 1, *(len(draft) for rows in drafts.values() for draft in rows), 1)
    return TokenChunks(
        tuple(
            _tensors(_tokenizer(model, part), part.name, drafts[part.name], count)
            for part in _text_components(model)
        )
    )


def token_count(model: Model, text: Text, *, tokens: Tokens | None = None) -> int:
    """How many tokens a text takes, as token counters show it: of its last chunk, after those it has filled.
    `<lora:...>` tags take none.

    Where text encoders count differently, the larger number.
    """
    words = parse_tags(text).text if isinstance(text, str) else text
    found = token_chunks(model, [words], tokens=[tokens or {}])
    counts = []
    for one, part in zip(found.encoders, _text_components(model), strict=True):
        room, end = one.ids.shape[2] - 2, _tokenizer(model, part).eos_token_id
        last = one.ids[0, -1].tolist()
        counts.append((found.chunks - 1) * room + last.index(end) - 1)
    return max(counts)


def encode_tokens(model: Model, tokens: TokenChunks, *, clip_skip: int = 1) -> TextConditioning:
    """Embeddings of token chunks; differentiable, in the dtype of the encoders' weights.

    One call of each text encoder a chunk, with exactly B rows in the order of the prompts: per-image mixes
    rely on it. `pooled` is that of the first chunk and is not changed by emphasis.
    """
    per_encoder = [_encode_one(model, one, clip_skip) for one in tokens.encoders]
    pooled = [result.pooled for result in per_encoder if result.pooled is not None]
    hidden = torch.cat([result.hidden for result in per_encoder], dim=-1)
    return TextConditioning(hidden, pooled[-1] if pooled else None)


def _text_components(model: Model) -> list[Component]:
    return [part for part in model.family.components if part.is_text]


def _tokenizer(model: Model, part: Component) -> Any:
    return getattr(model.pipeline, part.name.replace("text_encoder", "tokenizer"))


def _require_words(model: Model, known: Sequence[Tokens]) -> None:
    """Raises FitError naming every word that this model cannot take."""
    words = dict(chain.from_iterable(one.items() for one in known))
    problems = [
        f"{word!r} {reason}" for word, vectors in words.items() if (reason := word_problem(vectors, model))
    ]
    if problems:
        raise FitError(
            f"words that do not fit {model.facts.name} ({model.facts.variant}):\n{listing(problems)}\n"
            "Leave out the adapter that brings them, or load the base it was made for."
        )


@dataclass(frozen=True, eq=False, slots=True)
class Chunk:
    """Tokens without begin and end, the weight of each, and its vector if it has one of its own."""

    ids: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    vectors: tuple[Tensor | None, ...] = ()

    def __add__(self, other: Chunk) -> Chunk:
        return Chunk(self.ids + other.ids, self.weights + other.weights, self.vectors + other.vectors)

    def split(self, at: int) -> tuple[Chunk, Chunk]:
        return (
            Chunk(self.ids[:at], self.weights[:at], self.vectors[:at]),
            Chunk(self.ids[at:], self.weights[at:], self.vectors[at:]),
        )


@dataclass(frozen=True, eq=False, slots=True)
class _Reader:
    """One text encoder's way to read a prompt: its tokenizer, and the words the prompt knows beside it."""

    tokenizer: Any
    component: str
    words: Tokens

    def units(self, segment: Segment) -> Iterator[Chunk]:
        """The segment as parts that a chunk takes whole: a token, or all vectors of a word."""
        for piece in pieces(segment.text, self.words):
            if piece.word is not None:
                vectors = tuple(self.words[piece.word][self.component].unbind())
                count = len(vectors)
                # The ids stand for nothing; encoders that look for the end of the text must not find it here.
                yield Chunk((self.tokenizer.bos_token_id,) * count, (segment.weight,) * count, vectors)
                continue
            for token in self.tokenizer(piece.text, add_special_tokens=False, verbose=False).input_ids:
                yield Chunk((token,), (segment.weight,), (None,))


def _cut(reader: _Reader, text: Text) -> list[Chunk]:
    """The chunks of one prompt; at least one, which may be empty.

    A full chunk whose last comma lies at most COMMA_BACKTRACK tokens back ends after that comma, unless the
    next token is itself a comma: a phrase between commas then stays in one piece.
    """
    room = reader.tokenizer.model_max_length - 2
    comma = reader.tokenizer.convert_tokens_to_ids(",</w>")
    done: list[Chunk] = []
    open_chunk, comma_end = Chunk(), 0
    for segment in parse_attention(text) if isinstance(text, str) else text:
        if isinstance(segment, Break):
            done.append(open_chunk)
            open_chunk, comma_end = Chunk(), 0
            continue
        for unit in reader.units(segment):
            if len(open_chunk.ids) == room:
                near = unit.ids != (comma,) and comma_end and room - comma_end < COMMA_BACKTRACK
                full, open_chunk = open_chunk.split(comma_end if near else room)
                done.append(full)
                comma_end = 0
            if len(open_chunk.ids) + len(unit.ids) > room:
                done.append(open_chunk)
                open_chunk, comma_end = Chunk(), 0
            open_chunk += unit
            if unit.ids == (comma,):
                comma_end = len(open_chunk.ids)
    return [*done, open_chunk] if open_chunk.ids or not done else done


def _tensors(tokenizer: Any, component: str, drafts: list[list[Chunk]], count: int) -> EncoderTokens:
    length = tokenizer.model_max_length
    ids = torch.full((len(drafts), count, length), tokenizer.pad_token_id, dtype=torch.int64)
    weights = torch.ones(len(drafts), count, length)
    ids[:, :, 0] = tokenizer.bos_token_id
    places: list[tuple[int, int, int]] = []
    vectors: list[Tensor] = []
    for row, draft in enumerate(drafts):
        for index, chunk in enumerate([*draft, *[Chunk()] * (count - len(draft))]):
            used = len(chunk.ids)
            ids[row, index, 1 : used + 1] = torch.tensor(chunk.ids, dtype=torch.int64)
            ids[row, index, used + 1] = tokenizer.eos_token_id
            weights[row, index, 1 : used + 1] = torch.tensor(chunk.weights)
            own = [(place, vector) for place, vector in enumerate(chunk.vectors, 1) if vector is not None]
            places += [(row, index, place) for place, _ in own]
            vectors += [vector.float() for _, vector in own]
    found = torch.tensor(places, dtype=torch.int64).reshape(-1, 3)
    return EncoderTokens(component, ids, weights, found, torch.stack(vectors) if vectors else None)


@dataclass(frozen=True, eq=False, slots=True)
class _Encoded:
    hidden: Tensor
    pooled: Tensor | None


def _encode_one(model: Model, tokens: EncoderTokens, clip_skip: int) -> _Encoded:
    """Hidden states (B, k·L, dim) of one text encoder, and its pooled output (B, dim) if it is used."""
    encoder: Any = model.component(tokens.component)
    spec = model.family.text
    absent = 1 if model.facts.variant == "sd2" else 0  # its last layer is in no file: see `TextSpec`
    skipped = max(spec.default_skip, clip_skip - 1 - absent)
    layers = encoder.config.num_hidden_layers
    if clip_skip < 1 or skipped >= layers:
        raise ConfigError(
            f"clip_skip={clip_skip} is not possible with {tokens.component} of {model.facts.name!r}: its "
            f"{layers} layers allow 1 to {layers + absent}; 1 is the usual layer"
        )
    norm = model.module(f"{tokens.component}.text_model.final_layer_norm")
    hidden: list[Tensor] = []
    pooled: Tensor | None = None
    for index in range(tokens.ids.shape[1]):
        with _own_vectors(model, tokens, index):
            output = encoder(tokens.ids[:, index].to(model.device), output_hidden_states=True)
        state = output.hidden_states[-1 - skipped]
        if spec.final_norm:
            state = output.last_hidden_state if skipped == 0 else norm(state)
        hidden.append(_emphasised(state, tokens.weights[:, index]))
        if index == 0 and tokens.component == spec.pooled_from:
            pooled = output.text_embeds
    return _Encoded(torch.cat(hidden, dim=1), pooled)


@contextmanager
def _own_vectors(model: Model, tokens: EncoderTokens, chunk: int) -> Iterator[None]:
    """The encoder with the words' own vectors in their places of chunk `chunk`, for one call of it."""
    mine = tokens.places[:, 1] == chunk
    if tokens.vectors is None or not bool(mine.any()):
        yield
        return
    module = model.module(embedding_path(tokens.component))
    inner = module.forward
    rows, columns = tokens.places[mine][:, (0, 2)].unbind(dim=1)
    vectors = tokens.vectors[mine]

    def forward(ids: Tensor) -> Tensor:
        usual: Tensor = inner(ids)
        where = (rows.to(usual.device), columns.to(usual.device))
        return usual.index_put(where, vectors.to(usual.device, usual.dtype))

    attached = attach(module, forward)
    try:
        yield
    finally:
        attached.detach()


def _emphasised(hidden: Tensor, weights: Tensor) -> Tensor:
    """Every token's vector times its weight, then scaled to the mean it had, prompt by prompt.

    hidden (B, L, dim), weights (B, L). This is A1111's "Original" emphasis, except that A1111 takes one
    mean over all prompts of a batch; here each prompt has its own, so that its neighbours do not change it,
    and a prompt alone gives what A1111 gives. Where the mean is below MEAN_SHARE of the rms (some models'
    embeddings are centred) the quotient would be noise, even of the wrong sign: there the scaling is left
    out, which is A1111's "No norm".
    """
    if bool((weights == 1.0).all()):
        return hidden
    exact = hidden.float()
    weighted = exact * weights.to(exact.device).unsqueeze(-1)
    before, after = (x.mean(dim=(1, 2), keepdim=True) for x in (exact, weighted))
    floor = MEAN_SHARE * exact.square().mean(dim=(1, 2), keepdim=True).sqrt()
    sound = (torch.minimum(before.abs(), after.abs()) >= floor) & (before * after > 0)
    return (weighted * torch.where(sound, before / after, 1.0)).to(hidden.dtype)
