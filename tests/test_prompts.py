"""Prompt grammar: worked examples of A1111's rule, laws, and everything that is refused by name."""

import contextlib
import math
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difflora.errors import PromptError
from difflora.prompts import Break, LoraTag, Segment, escape, parse_attention, parse_tags

# What A1111 makes of these prompts: pairs of text and weight, None for BREAK.
A1111_EXAMPLES = {
    "": [("", 1.0)],
    "normal text": [("normal text", 1.0)],
    "an (important) word": [("an ", 1.0), ("important", 1.1), (" word", 1.0)],
    "a [dull] word": [("a ", 1.0), ("dull", 1 / 1.1), (" word", 1.0)],
    "(unbalanced": [("unbalanced", 1.1)],
    "[unbalanced": [("unbalanced", 1 / 1.1)],
    "unbalanced) and ] more": [("unbalanced) and ] more", 1.0)],
    "(a (b": [("a ", 1.1), ("b", 1.21)],
    r"\(literal\]": [("(literal]", 1.0)],
    r"\\": [("\\", 1.0)],
    r"a\b": [("ab", 1.0)],
    "end\\": [("end", 1.0)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "(word:1.2)": [("word", 1.2)],
    "(word: 1.2 )": [("word", 1.2)],
    "(word:.5)": [("word", 0.5)],
    "(word:-1)": [("word", -1.0)],
    "(word:+2.)": [("word", 2.0)],
    "(a:b)": [("a:b", 1.1)],
    "(a:b:2)": [("a:b", 2.0)],
    "a:1.2) b": [("a:1.2) b", 1.0)],
    "[a:1.2) b]": [("a:1.2) b", 1 / 1.1)],
    "(a [b) c]": [("a ", 1.1), ("b", 1.0), (" c", 1 / 1.1)],
    "((a))": [("a", 1.21)],
    "[[a]]": [("a", 1 / 1.21)],
    "([a])": [("a", 1.0)],
    r"(a\)b:1.5)": [("a)b", 1.5)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1.0),
        ("house", 1.573),
        (" ", 1.1),
        ("on", 1.0),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.4641),
        (".", 1.1),
    ],
    "a BREAK b": [("a", 1.0), None, ("b", 1.0)],
    "a \n BREAK\tb": [("a", 1.0), None, ("b", 1.0)],
    "aBREAK BREAKS break _BREAK": [("aBREAK BREAKS break _BREAK", 1.0)],
    "BREAK": [None],
    "BREAK BREAK a": [None, None, ("a", 1.0)],
    "(a) BREAK (b:2)": [("a", 1.1), None, ("b", 2.0)],
    "a,BREAK:b": [("a,", 1.0), None, (":b", 1.0)],
    "(a BREAK b:1.0)": [("a", 1.0), None, ("b", 1.0)],
    "one | two, rock and roll": [("one | two, rock and roll", 1.0)],
    "(a|b)": [("a|b", 1.1)],
    "[a:b]": [("a:b", 1 / 1.1)],
    "i <3 you >_<": [("i <3 you >_<", 1.0)],
    "猫 (かわいい:1.3) 🐈": [("猫 ", 1.0), ("かわいい", 1.3), (" 🐈", 1.0)],
}


def as_pairs(pieces):
    return [
        None if isinstance(piece, Break) else (piece.text, pytest.approx(piece.weight)) for piece in pieces
    ]


@pytest.mark.parametrize("text", A1111_EXAMPLES)
def test_a1111_reads_it_so(text):
    assert A1111_EXAMPLES[text] == as_pairs(parse_attention(text))


REFUSED = {
    "[a:b:0.5]": (1, "prompt editing"),
    "x [b:3] y": (3, "prompt editing"),
    "[a::0.5]": (1, "prompt editing"),
    "[a : b : 1e1 ]": (1, "prompt editing"),
    "[(a:1.2):5]": (1, "prompt editing"),
    "[a|b]": (1, "alternation"),
    "([a|b|c])": (2, "alternation"),
    "a AND b": (3, "AND"),
    "AND": (1, "AND"),
    "a AND_PERP b": (3, "AND"),
    "a ADDCOMM b": (3, "regions"),
    "a {b|c}": (3, "dynamic prompts"),
    "{a}": (1, "curly"),
    "a __colour__ cat": (3, "wildcards"),
    "__animals/cat*__": (1, "wildcards"),
    "<hypernet:x:0.5>": (1, "hypernetworks"),
    "<segment:face>": (1, "<segment:"),
    "<lora:x:1>": (1, "resolve"),
    "a <lora:x": (3, "resolve"),
    "a # hidden": (3, "hides"),
    "a cat:1.2": (6, "end"),
    "poster 16:9 ": (10, "end"),
    "(word:1.2.3)": (6, "1.2.3"),
    "(word:1,2)": (6, "1,2"),
    "(word:nan)": (6, "nan"),
    "(word:-inf)": (6, "inf"),
    "(word:1e3)": (6, "1e3"),
    "(word:.)": (6, "finite"),
    "(word:" + "9" * 400 + ")": (6, "finite"),
    "(a BREAK b)": (3, "BREAK"),
    "(a BREAK b": (3, "BREAK"),
}


@pytest.mark.parametrize("text", REFUSED)
def test_other_syntax_is_refused_by_name_and_position(text):
    position, words = REFUSED[text]
    with pytest.raises(PromptError) as caught:
        parse_attention(text)
    assert f"at character {position}, `" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "literal"),
    [
        (r"\[a:b:0.5\]", "[a:b:0.5]"),
        (r"\[a|b\]", "[a|b]"),
        (r"rock \AND roll", "rock AND roll"),
        (r"a \BREAK b", "a BREAK b"),
        (r"\{a\}", "{a}"),
        (r"\__colour__", "__colour__"),
        (r"\<lora:x:1>", "<lora:x:1>"),
        (r"\#1", "#1"),
        (r"poster 16\:9", "poster 16:9"),
    ],
)
def test_a_backslash_makes_any_syntax_literal(text, literal):
    assert parse_attention(text) == (Segment(literal),)


def test_all_problems_are_named_at_once():
    with pytest.raises(PromptError) as caught:
        parse_attention("[a|b] AND {c|d} <hypernet:e>")
    message = str(caught.value)
    assert "4 problems" in message
    assert all(word in message for word in ("alternation", "AND", "dynamic", "hypernetworks"))


def test_weights_that_overflow_are_refused():
    with pytest.raises(PromptError, match="more than a number can hold"):
        parse_attention("(" * 10_000 + "a" + ")" * 10_000)


TAGS = {
    "<lora:x>": ("", [LoraTag("x", 1.0, 1.0)]),
    "<lora:x:0.5>": ("", [LoraTag("x", 0.5, 0.5)]),
    "<lyco:x:-0.5>": ("", [LoraTag("x", -0.5, -0.5)]),
    "a <lora:x:0.5:0.8>, b": ("a , b", [LoraTag("x", unet=0.8, text=0.5)]),
    "<lora:x:te=0.3:unet=.7>": ("", [LoraTag("x", unet=0.7, text=0.3)]),
    "<lora:x:te=0.3>": ("", [LoraTag("x", unet=0.3, text=0.3)]),
    "<lora:x:unet=0.3>": ("", [LoraTag("x", unet=0.3, text=1.0)]),
    "<lora:x:0.5:0.6:te=0>": ("", [LoraTag("x", unet=0.6, text=0.0)]),
    "<lora:x.safetensors:1>": ("", [LoraTag("x")]),
    "<lora:my style v1.2:1>": ("", [LoraTag("my style v1.2")]),
    "<lora:folder/x:1>": ("", [LoraTag("folder/x")]),
    "<lora:x:1><lora:y:2>": ("", [LoraTag("x"), LoraTag("y", 2.0, 2.0)]),
    "<lora:x:0.5> a <lora:x:0.25:1>": (" a ", [LoraTag("x", unet=1.5, text=0.75)]),
    r"\<lora:x:1> (b:1.2)\\": (r"\<lora:x:1> (b:1.2)\\", []),
    "<lora:x:1>\\": ("\\", [LoraTag("x")]),
    "i <3 you": ("i <3 you", []),
}


@pytest.mark.parametrize("prompt", TAGS)
def test_tags(prompt):
    text, tags = TAGS[prompt]
    parsed = parse_tags(prompt)
    assert (parsed.text, list(parsed.tags)) == (text, tags)


REFUSED_TAGS = {
    "a <lora:x": (3, "not closed"),
    "<lora:x <lora:y:1>": (1, "not closed"),
    "<lora::1>": (1, "names no adapter"),
    "<lora:te=1>": (1, "names no adapter"),
    "<lora:x:>": (1, "not a finite decimal"),
    "<lora:x:one>": (1, "`one`"),
    "<lora:x:nan>": (1, "`nan`"),
    "<lora:x:inf>": (1, "`inf`"),
    "<lora:x:1e5>": (1, "`1e5`"),
    "<lora:x:-+1>": (1, "`-+1`"),
    "<lora:x:1,5>": (1, "`1,5`"),
    "<lora:x:1:1:8>": (1, "dyn"),
    "<lora:x:1:dyn=8>": (1, "dyn"),
    "<lora:x:1:lbw=ALL>": (1, "lbw="),
    "<lora:x:1:start=3>": (1, "start="),
    "<lora:x:1:foo=3>": (1, "foo="),
    "<lora:x:te=1:te=2>": (1, "twice"),
    "<lora:x:0@0,1@0.5>": (1, "by steps"),
    "<LORA:x:1>": (1, "lower case"),
    "<hypernet:x:1>": (1, "hypernetworks"),
}


@pytest.mark.parametrize("prompt", REFUSED_TAGS)
def test_tags_that_are_refused(prompt):
    position, words = REFUSED_TAGS[prompt]
    with pytest.raises(PromptError) as caught:
        parse_tags(prompt)
    assert f"at character {position}, `" in str(caught.value)
    assert words in str(caught.value)


weights = st.floats(-1e6, 1e6, allow_nan=False)
names = st.text(st.characters(exclude_characters="<>:=\\\n", exclude_categories=["Cs", "Cc"]), min_size=1)


@given(
    name=names.map(str.strip).filter(lambda n: n and not n.endswith(".safetensors")),
    unet=weights,
    text=weights,
)
def test_a_written_tag_reads_back_exactly(name, unet, text):
    tag = LoraTag(name, unet=unet, text=text)
    assert parse_tags(f"a {tag} b") == parse_tags("a  b").__class__("a  b", (tag,))


fragments = [*"ab ()[]{}|:<>\\_.,#-+1209\nß猫", " BREAK ", "AND", "<lora:", "nan", ":1.2)"]
syntax = st.lists(st.sampled_from(fragments)).map("".join)


@settings(max_examples=400)
@given(st.one_of(syntax, st.text()))
def test_nothing_but_prompt_errors(prompt):
    for parse in (parse_attention, parse_tags):
        try:
            result = parse(prompt)
        except PromptError as error:
            assert "at character " in str(error)
        else:
            assert result


@given(syntax)
def test_weights_are_finite_and_no_segment_is_empty_or_has_a_twin(prompt):
    try:
        pieces = parse_attention(prompt)
    except PromptError:
        return
    if pieces == (Segment(""),):
        return
    for piece, following in zip(pieces, (*pieces[1:], None), strict=True):
        if isinstance(piece, Segment):
            assert piece.text
            assert math.isfinite(piece.weight)
            assert not isinstance(following, Segment) or following.weight != piece.weight


@given(st.text(st.characters(exclude_characters="<\\")))
def test_text_without_tags_is_kept_as_it_is(text):
    assert parse_tags(text).text == text


@given(st.one_of(st.text(), syntax))
def test_escaped_text_is_preserved(text):
    everything = re.sub(r"(.)", r"\\\1", text, flags=re.S)
    assert parse_attention(everything) == (Segment(text),)
    assert parse_attention(escape(text)) == (Segment(text),)
    assert parse_tags(escape(text)).tags == ()


@given(st.lists(st.tuples(st.text("abc, ", min_size=1), st.sampled_from([0.5, 0.9, 1.3, 2.0])), min_size=1))
def test_weighted_text_is_preserved(parts):
    pieces = parse_attention("".join(f"({text}:{weight})" for text, weight in parts))
    assert "".join(piece.text for piece in pieces) == "".join(text for text, _ in parts)
    marks = [weight for text, weight in parts for _ in text]
    assert [piece.weight for piece in pieces for _ in piece.text] == pytest.approx(marks)


HARD = [
    "(",
    "[",
    "(a",
    "(a)",
    ":",
    ": ",
    ":1",
    "[:",
    "{",
    "__",
    "<",
    "<lora:",
    "<a:",
    "<lora:a>",
    "BREAK ",
    "\\",
    "#",
    " ",
]


@pytest.mark.parametrize("unit", HARD)
@pytest.mark.parametrize("tail", ["", ")", "]", ">", ")" * 20_000, "]" * 20_000])
def test_time_is_linear(unit, tail):
    prompt = unit * (30_000 // len(unit)) + tail
    started = time.process_time()
    for parse in (parse_attention, parse_tags):
        with contextlib.suppress(PromptError):
            parse(prompt)
    # Quadratic time would be minutes; a second leaves room for a busy machine.
    assert time.process_time() - started < 1.5
