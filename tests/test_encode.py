"""Prompts to embeddings, against diffusers' own `encode_prompt` and against the rules of emphasis and
chunks.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from difflora.adapter import Tokens
from difflora.encode import COMMA_BACKTRACK, encode, encode_tokens, token_chunks, token_count
from difflora.errors import ConfigError, FitError
from difflora.families import load
from difflora.families.model import Model
from difflora.prompts import Segment
from tests.tiny_sdxl import save_tiny_sdxl

PROMPTS = ["a red circle on a blue background", "", "a large yellow star"]
LENGTH = 32
ROOM = LENGTH - 2


@pytest.fixture(scope="module")
def shapes(shapes_model: Model) -> Model:
    return shapes_model


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(str(save_tiny_sdxl(tmp_path_factory.mktemp("sdxl"))), device="cpu", dtype="float32")


def oracle(model: Model, *, clip_skip: int | None = None, prompts: list[str] = PROMPTS) -> tuple[Any, ...]:
    """diffusers' (hidden, negative hidden, pooled ...) of `prompts`."""
    encoder = model.component("text_encoder")
    # diffusers 0.42 looks for a level that transformers 5 dropped; set past nn.Module so as not to register.
    object.__setattr__(encoder, "text_model", encoder)
    try:
        with torch.no_grad():
            return model.pipeline.encode_prompt(
                prompts,
                device="cpu",
                num_images_per_prompt=1,
                do_classifier_free_guidance=False,
                clip_skip=clip_skip,
            )
    finally:
        object.__delattr__(encoder, "text_model")


@pytest.mark.parametrize(("clip_skip", "theirs"), [(1, None), (2, 1), (3, 2)])
def test_sd1_equals_diffusers(shapes: Model, clip_skip: int, theirs: int | None) -> None:
    text = encode(shapes, PROMPTS, clip_skip=clip_skip)
    assert torch.equal(text.hidden, oracle(shapes, clip_skip=theirs)[0])
    assert text.pooled is None


@pytest.mark.parametrize(("clip_skip", "theirs"), [(1, None), (2, None), (3, 1)])
def test_sdxl_equals_diffusers(sdxl: Model, clip_skip: int, theirs: int | None) -> None:
    text = encode(sdxl, PROMPTS, clip_skip=clip_skip)
    hidden, _, pooled, _ = oracle(sdxl, clip_skip=theirs)
    assert torch.equal(text.hidden, hidden)
    assert text.pooled is not None and torch.equal(text.pooled, pooled)


def test_clip_skip_beyond_the_layers_names_the_range(shapes: Model, sdxl: Model) -> None:
    with pytest.raises(ConfigError, match="1 to 3"):
        encode(shapes, PROMPTS, clip_skip=4)
    with pytest.raises(ConfigError, match="1 to 3"):
        encode(sdxl, PROMPTS, clip_skip=4)
    with pytest.raises(ConfigError):
        encode(shapes, PROMPTS, clip_skip=0)


def test_sd2_has_left_its_last_layer_out_already(shapes: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, before = (encode(shapes, PROMPTS, clip_skip=skip).hidden for skip in (1, 2))
    monkeypatch.setattr(shapes, "facts", replace(shapes.facts, variant="sd2"))
    assert torch.equal(encode(shapes, PROMPTS, clip_skip=2).hidden, usual)
    assert torch.equal(encode(shapes, PROMPTS, clip_skip=3).hidden, before)


def ids(model: Model, text: str) -> list[list[int]]:
    """Tokens of each chunk without begin, end and padding."""
    rows = token_chunks(model, [text]).encoders[0].ids[0].tolist()
    end = model.pipeline.tokenizer.eos_token_id
    return [row[1 : row.index(end)] for row in rows]


def words(model: Model, text: str) -> list[int]:
    return model.pipeline.tokenizer(text, add_special_tokens=False).input_ids


def test_long_prompt_without_commas_fills_chunks(shapes: Model) -> None:
    text = " ".join(["red circle"] * 40)
    whole = words(shapes, text)
    assert ids(shapes, text) == [whole[i : i + ROOM] for i in range(0, len(whole), ROOM)]


def test_phrase_at_the_end_of_a_chunk_moves_whole(shapes: Model) -> None:
    head, tail = ["red"] * (ROOM - 5), ["blue"] * 8
    first, second = ids(shapes, " ".join(head) + ", " + " ".join(tail))
    assert first == words(shapes, " ".join(head) + ",")
    assert second == words(shapes, " ".join(tail))


@pytest.mark.parametrize(
    ("comma_end", "moves"), [(ROOM - COMMA_BACKTRACK + 1, True), (ROOM - COMMA_BACKTRACK, False)]
)
def test_a_comma_counts_within_20_tokens(shapes: Model, comma_end: int, moves: bool) -> None:
    text = " ".join(["red"] * (comma_end - 1)) + ", " + " ".join(["blue"] * ROOM)
    assert len(ids(shapes, text)[0]) == (comma_end if moves else ROOM)


def test_comma_as_first_token_after_a_full_chunk_moves_nothing(shapes: Model) -> None:
    text = "red, " + " ".join(["red"] * (ROOM - 2)) + ", blue"
    assert [len(chunk) for chunk in ids(shapes, text)] == [ROOM, 2]


def test_break_ends_a_chunk(shapes: Model) -> None:
    assert ids(shapes, "a red circle BREAK a star") == [
        words(shapes, "a red circle"),
        words(shapes, "a star"),
    ]
    assert ids(shapes, "a red circle BREAK") == [words(shapes, "a red circle")]
    chunked = encode(shapes, ["a red circle BREAK a star"]).hidden
    apart = encode(shapes, ["a red circle", "a star"]).hidden
    torch.testing.assert_close(chunked.reshape(2, LENGTH, -1), apart, rtol=0, atol=1e-6)


def test_short_prompts_get_empty_chunks(shapes: Model) -> None:
    text = encode(shapes, ["a red circle BREAK a star", "a ring"])
    alone = encode(shapes, ["a ring", ""])
    assert text.hidden.shape[1] == 2 * LENGTH
    torch.testing.assert_close(text.hidden[1].reshape(2, LENGTH, -1), alone.hidden, rtol=0, atol=1e-6)
    assert encode(shapes, ["a ring"], chunks=3).hidden.shape[1] == 3 * LENGTH


def test_pooled_is_that_of_the_first_chunk(sdxl: Model) -> None:
    both, first = encode(sdxl, ["a red circle BREAK a star"]), encode(sdxl, ["a red circle"])
    assert both.pooled is not None and first.pooled is not None
    torch.testing.assert_close(both.pooled, first.pooled, rtol=0, atol=1e-6)


def test_padding_after_the_end_is_that_of_each_tokenizer(sdxl: Model) -> None:
    one, two = token_chunks(sdxl, ["a star"]).encoders
    for tokens, tokenizer in ((one, sdxl.pipeline.tokenizer), (two, sdxl.pipeline.tokenizer_2)):
        expected = tokenizer(
            ["a star"], padding="max_length", max_length=LENGTH, return_tensors="pt"
        ).input_ids
        assert torch.equal(tokens.ids[:, 0], expected)
    assert not torch.equal(one.ids, two.ids)


def shifted(model: Model, by: float) -> Any:
    """Moves the mean of the embeddings away from zero, as it is in Stable Diffusion 1.5."""
    return model.module("text_encoder.text_model.final_layer_norm").register_forward_hook(
        lambda module, inputs, output: output + by
    )


def emphasis(plain: Tensor, weights: Tensor) -> Tensor:
    """A1111's rule, written out in float64."""
    weighted = plain.double() * weights.double().unsqueeze(-1)
    return weighted * plain.double().mean((1, 2), keepdim=True) / weighted.mean((1, 2), keepdim=True)


def test_emphasis_multiplies_and_restores_the_mean(shapes: Model) -> None:
    hook = shifted(shapes, 0.5)
    try:
        plain = encode(shapes, ["a red circle"]).hidden
        strong = encode(shapes, ["a (red:1.5) circle"]).hidden
    finally:
        hook.remove()
    weights = torch.ones(1, LENGTH)
    weights[0, 2] = 1.5
    torch.testing.assert_close(strong.double(), emphasis(plain, weights), rtol=0, atol=1e-6)
    torch.testing.assert_close(strong.mean(), plain.mean())


def test_emphasis_without_a_mean_to_restore_only_multiplies(shapes: Model) -> None:
    plain = encode(shapes, ["a red circle"]).hidden
    strong = encode(shapes, ["a (red:1.5) circle"]).hidden
    assert plain.mean().abs() < 0.02 * plain.square().mean().sqrt(), "shapes-sd has centred embeddings"
    torch.testing.assert_close(strong[:, 2], plain[:, 2] * 1.5)
    assert torch.equal(strong[:, 3:], plain[:, 3:])


def test_neighbours_do_not_change_a_prompt(shapes: Model) -> None:
    hook = shifted(shapes, 0.5)
    try:
        alone = encode(shapes, ["a (red:1.5) circle", "a star"]).hidden[0]
        beside = encode(shapes, ["a (red:1.5) circle", "((a green)) [heart]"]).hidden[0]
    finally:
        hook.remove()
    assert torch.equal(alone, beside)


def test_weights_of_one_change_nothing(shapes: Model) -> None:
    assert torch.equal(encode(shapes, ["a (red:1.0) circle"]).hidden, encode(shapes, ["a red circle"]).hidden)


def test_pieces_are_taken_literally(shapes: Model) -> None:
    caption = "a red (circle:1.5) [on] blue"
    literal = encode(shapes, [[Segment(caption)]]).hidden
    assert torch.equal(literal, encode(shapes, [r"a red \(circle:1.5\) \[on\] blue"]).hidden)
    assert not torch.equal(literal, encode(shapes, [caption]).hidden)


def test_no_prompts_is_an_error(shapes: Model) -> None:
    with pytest.raises(ConfigError, match="empty list"):
        encode(shapes, [])


def test_embeddings_are_differentiable(sdxl: Model) -> None:
    names = [
        f"{name}.text_model.encoder.layers.0.self_attn.q_proj" for name in ("text_encoder", "text_encoder_2")
    ]
    weights = [sdxl.module(name).weight for name in names]
    for weight in weights:
        weight.requires_grad_(True)
    text = encode_tokens(sdxl, token_chunks(sdxl, ["a (red:1.2) circle BREAK a star"]))
    for grad in torch.autograd.grad(text.hidden.square().mean(), weights):
        assert bool(grad.abs().sum() > 0)
    for weight in weights:
        weight.requires_grad_(False)


def test_every_encoder_call_has_one_row_a_prompt(sdxl: Model) -> None:
    rows: list[int] = []
    hooks = [
        sdxl.component(name).register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0].shape[0]))
        for name in ("text_encoder", "text_encoder_2")
    ]
    try:
        encode(sdxl, ["a BREAK b BREAK c", "d", "e", "f", "g"])
    finally:
        for hook in hooks:
            hook.remove()
    assert rows == [5] * 6


WORD_PROMPTS = ["a <zig> on a <zag> background", "<zig>", "no new word, but a red circle", "<ZIG><zig> <zag>"]


def vectors(model: Model, counts: dict[str, int], *, scale: float = 0.02) -> Tokens:
    """Words of that many random vectors for every text encoder of `model`."""
    names = [part.name for part in model.family.components if part.is_text]
    widths = {name: model.component(name).config.hidden_size for name in names}
    return {
        word: {name: torch.randn(count, width) * scale for name, width in widths.items()}
        for word, count in counts.items()
    }


def taught(folder: str, tokens: Tokens) -> Model:
    """Another copy of a base, whose tokenizers and embeddings diffusers has extended by `tokens`."""
    model = load(folder, device="cpu", dtype="float32")
    for word, parts in tokens.items():
        for component, values in parts.items():
            model.pipeline.load_textual_inversion(
                {word: values},
                token=word,
                text_encoder=getattr(model.pipeline, component),
                tokenizer=getattr(model.pipeline, component.replace("text_encoder", "tokenizer")),
            )
    return model


def test_words_equal_diffusers_textual_inversion(shapes: Model, shapes_folder: Path) -> None:
    tokens = vectors(shapes, {"<zig>": 1, "<zag>": 3})
    expected = oracle(taught(str(shapes_folder), tokens), prompts=WORD_PROMPTS)[0]
    found = encode(shapes, WORD_PROMPTS, tokens=[tokens] * 4).hidden
    assert torch.equal(found, expected)
    assert not torch.equal(found, encode(shapes, WORD_PROMPTS).hidden)


@pytest.mark.parametrize(("clip_skip", "theirs"), [(2, None), (3, 1)])
def test_words_equal_diffusers_in_both_encoders_of_sdxl(
    sdxl: Model, clip_skip: int, theirs: int | None
) -> None:
    tokens = vectors(sdxl, {"<zig>": 1, "<zag>": 3})
    peer = taught(sdxl.source, tokens)
    hidden, _, pooled, _ = oracle(peer, prompts=WORD_PROMPTS, clip_skip=theirs)
    text = encode(sdxl, WORD_PROMPTS, tokens=[tokens] * 4, clip_skip=clip_skip)
    assert torch.equal(text.hidden, hidden)
    assert text.pooled is not None and torch.equal(text.pooled, pooled)


def test_every_prompt_has_its_own_words_and_the_model_none_afterwards(shapes: Model) -> None:
    before, plain = shapes.checksum(), encode(shapes, ["a zig"] * 3).hidden
    one, other = vectors(shapes, {"zig": 1}), vectors(shapes, {"zig": 2})
    mixed = encode(shapes, ["a zig"] * 3, tokens=[one, {}, other]).hidden
    torch.testing.assert_close(mixed[1], plain[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(mixed[0], encode(shapes, ["a zig"], tokens=[one]).hidden[0], rtol=0, atol=1e-6)
    assert not torch.allclose(mixed[0], mixed[2], atol=1e-3)
    assert torch.equal(encode(shapes, ["a zig"] * 3).hidden, plain)
    assert shapes.checksum() == before


def test_the_encoder_is_as_it_was_after_an_error(shapes: Model) -> None:
    embedding = shapes.module("text_encoder.text_model.embeddings.token_embedding")
    tokens = vectors(shapes, {"zig": 1})
    hook = shapes.module("text_encoder.text_model.final_layer_norm").register_forward_hook(
        lambda module, inputs, output: 1 / 0
    )
    try:
        with pytest.raises(ZeroDivisionError):
            encode(shapes, ["zig"], tokens=[tokens])
    finally:
        hook.remove()
    assert "forward" not in embedding.__dict__


def test_attention_weights_every_vector_of_a_word(shapes: Model) -> None:
    tokens = vectors(shapes, {"zig": 2})
    plain = encode(shapes, ["a zig circle"], tokens=[tokens]).hidden
    strong = encode(shapes, ["a (zig:1.5) circle"], tokens=[tokens]).hidden
    torch.testing.assert_close(strong[:, 2:4], plain[:, 2:4] * 1.5)
    assert torch.equal(strong[:, 4:], plain[:, 4:])


def test_vectors_count_as_tokens_and_a_word_is_never_cut(shapes: Model) -> None:
    tokens = vectors(shapes, {"zig": 4})
    room_for_three = " ".join(["red"] * (ROOM - 3))
    cut = token_chunks(shapes, [f"{room_for_three} zig blue"], tokens=[tokens]).encoders[0]
    assert cut.ids.shape[1] == 2
    assert cut.places.tolist() == [[0, 1, place] for place in (1, 2, 3, 4)]
    fits_in = token_chunks(shapes, [" ".join(["red"] * (ROOM - 4)) + " zig"], tokens=[tokens]).encoders[0]
    assert fits_in.ids.shape[1] == 1
    assert fits_in.places[:, 2].tolist() == list(range(ROOM - 3, ROOM + 1))
    phrase = "red, " + " ".join(["red"] * (ROOM - 3)) + ", blue zig"
    moved = token_chunks(shapes, [phrase], tokens=[tokens]).encoders[0]
    assert moved.places.tolist() == [[0, 1, place] for place in (2, 3, 4, 5)]


def test_a_long_prompt_has_its_words_in_every_chunk(shapes: Model) -> None:
    tokens = vectors(shapes, {"zig": 2})
    both = encode(shapes, ["a zig BREAK the zig"], tokens=[tokens]).hidden
    apart = encode(shapes, ["a zig", "the zig"], tokens=[tokens] * 2).hidden
    torch.testing.assert_close(both.reshape(2, LENGTH, -1), apart, rtol=0, atol=1e-6)


def test_the_count_of_tokens_counts_vectors(shapes: Model, sdxl: Model) -> None:
    assert token_count(shapes, "") == 0
    assert token_count(shapes, "a red circle") == 3
    assert token_count(shapes, "a red circle <lora:dots:0.7>") == 3
    assert token_count(shapes, "a zig circle", tokens=vectors(shapes, {"zig": 5})) == 7
    assert token_count(sdxl, "a zig BREAK zig", tokens=vectors(sdxl, {"zig": 5})) == ROOM + 5


def test_words_of_another_base_are_refused_by_name(shapes: Model, sdxl: Model) -> None:
    with pytest.raises(FitError, match=r"'zig' has vectors for text_encoder and text_encoder_2, expected"):
        encode(shapes, ["a"], tokens=[vectors(sdxl, {"zig": 1})])
    narrow = {"zig": {"text_encoder": torch.ones(1, 7)}}
    with pytest.raises(FitError, match=r"'zig' has vectors of 7 numbers for text_encoder, expected 128"):
        encode(shapes, ["a"], tokens=[narrow])
    with pytest.raises(FitError, match=r"has 31 vectors for text_encoder, which has room for 30"):
        encode(shapes, ["a"], tokens=[vectors(shapes, {"zig": 31})])


def test_words_are_differentiable(shapes: Model) -> None:
    tokens = vectors(shapes, {"zig": 2})
    learned = tokens["zig"]["text_encoder"].requires_grad_(True)
    hidden = encode_tokens(shapes, token_chunks(shapes, ["a zig"], tokens=[tokens])).hidden
    (gradient,) = torch.autograd.grad(hidden.square().mean(), [learned])
    assert bool((gradient.abs().sum(dim=1) > 0).all())
