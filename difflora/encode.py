"""Prompts to text embeddings: attention weights, BREAK, any length, clip skip.

Each text encoder sees chunks of max_length - 2 tokens (75 for CLIP) between its begin and end tokens; the
embeddings of the chunks are put one after another. A short plain prompt gives exactly what diffusers'
`encode_prompt` gives. Facts of emphasis, BREAK, the comma rule and the counting of clip skip: the behaviour
of stable-diffusion-webui 1.10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from difflora.errors import ConfigError
from difflora.prompts import Break, Segment, parse_attention

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
    """What one text encoder is given: `ids` int64 and emphasis `weights` float32, (B, k, L), on the CPU."""

    component: str
    ids: Tensor
    weights: Tensor


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
    model: Model, prompts: Sequence[Text], *, clip_skip: int = 1, chunks: int | None = None
) -> TextConditioning:
    """Text embeddings of `prompts`, in the dtype of the text encoders, on the model's device.

    All prompts get as many chunks as the longest needs, or `chunks` if that is more: shorter ones are
    filled up with empty chunks. `clip_skip` counts as A1111 does: 1 is the family's own layer, 2 the one
    before. Raises PromptError for syntax, ConfigError for a clip skip beyond the encoder's layers.
    """
    return encode_tokens(model, token_chunks(model, prompts, chunks=chunks), clip_skip=clip_skip)


def token_chunks(model: Model, texts: Sequence[Text], *, chunks: int | None = None) -> TokenChunks:
    """`texts` cut into chunks for each text encoder, all into as many as the longest needs, or `chunks`.

    Raises PromptError for syntax, ConfigError for an empty sequence.
    """
    if not texts:
        raise ConfigError(
            "nothing to encode: an empty list of prompts was given; for no text give one empty prompt"
        )
    drafts = {
        part.name: [_cut(_tokenizer(model, part), text) for text in texts] for part in _text_components(model)
    }
    count = max(chunks or 1, *(len(draft) for rows in drafts.values() for draft in rows), 1)
    return TokenChunks(
        tuple(
            _tensors(_tokenizer(model, part), part.name, drafts[part.name], count)
            for part in _text_components(model)
        )
    )


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


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens without begin and end, and the weight of each."""

    ids: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()

    def __add__(self, other: Chunk) -> Chunk:
        return Chunk(self.ids + other.ids, self.weights + other.weights)

    def split(self, at: int) -> tuple[Chunk, Chunk]:
        return Chunk(self.ids[:at], self.weights[:at]), Chunk(self.ids[at:], self.weights[at:])


def _cut(tokenizer: Any, text: Text) -> list[Chunk]:
    """The chunks of one prompt; at least one, which may be empty.

    A full chunk whose last comma lies at most COMMA_BACKTRACK tokens back ends after that comma, unless the
    next token is itself a comma: a phrase between commas then stays in one piece.
    """
    room = tokenizer.model_max_length - 2
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    done: list[Chunk] = []
    open_chunk, comma_end = Chunk(), 0
    for segment in parse_attention(text) if isinstance(text, str) else text:
        if isinstance(segment, Break):
            done.append(open_chunk)
            open_chunk, comma_end = Chunk(), 0
            continue
        for token in tokenizer(segment.text, add_special_tokens=False, verbose=False).input_ids:
            if len(open_chunk.ids) == room:
                near = token != comma and comma_end and room - comma_end < COMMA_BACKTRACK
                full, open_chunk = open_chunk.split(comma_end if near else room)
                done.append(full)
                comma_end = 0
            open_chunk += Chunk((token,), (segment.weight,))
            if token == comma:
                comma_end = len(open_chunk.ids)
    return [*done, open_chunk] if open_chunk.ids or not done else done


def _tensors(tokenizer: Any, component: str, drafts: list[list[Chunk]], count: int) -> EncoderTokens:
    length = tokenizer.model_max_length
    ids = torch.full((len(drafts), count, length), tokenizer.pad_token_id, dtype=torch.int64)
    weights = torch.ones(len(drafts), count, length)
    ids[:, :, 0] = tokenizer.bos_token_id
    for row, draft in enumerate(drafts):
        for index, chunk in enumerate([*draft, *[Chunk()] * (count - len(draft))]):
            used = len(chunk.ids)
            ids[row, index, 1 : used + 1] = torch.tensor(chunk.ids, dtype=torch.int64)
            ids[row, index, used + 1] = tokenizer.eos_token_id
            weights[row, index, 1 : used + 1] = torch.tensor(chunk.weights)
    return EncoderTokens(component, ids, weights)


@dataclass(frozen=True, eq=False, slots=True)
class _Encoded:
    hidden: Tensor
    pooled: Tensor | None


def _encode_one(model: Model, tokens: EncoderTokens, clip_skip: int) -> _Encoded:
    """Hidden states (B, k·L, dim) of one text encoder, and its pooled output (B, dim) if it is used."""
    encoder: Any = model.component(tokens.component)
    spec = model.family.text
    skipped = spec.default_skip + clip_skip - 1
    layers = encoder.config.num_hidden_layers
    if clip_skip < 1 or skipped >= layers:
        raise ConfigError(
            f"clip_skip={clip_skip} is not possible with {tokens.component} of {model.facts.name!r}: its "
            f"{layers} layers allow 1 to {layers - spec.default_skip}; 1 is the usual layer"
        )
    norm = model.module(f"{tokens.component}.text_model.final_layer_norm")
    hidden: list[Tensor] = []
    pooled: Tensor | None = None
    for index in range(tokens.ids.shape[1]):
        output = encoder(tokens.ids[:, index].to(model.device), output_hidden_states=True)
        state = output.hidden_states[-1 - skipped]
        if spec.final_norm:
            state = output.last_hidden_state if skipped == 0 else norm(state)
        hidden.append(_emphasised(state, tokens.weights[:, index]))
        if index == 0 and tokens.component == spec.pooled_from:
            pooled = output.text_embeds
    return _Encoded(torch.cat(hidden, dim=1), pooled)


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
