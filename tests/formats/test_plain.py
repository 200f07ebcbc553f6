"""Taking a header in by columns finds what going through it piece by piece finds, or leaves it to that."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difflora.errors import AdapterFileError
from difflora.formats import safe
from difflora.formats.plain import MAX_DIM, MAX_NAME, plain_header
from tests.formats.malformed import MALFORMED, entry, raw

A, B = entry(0, 16), entry(16, 32)
TENSORS = {
    "ä b": torch.ones(2, 2),
    "c": torch.zeros(3, dtype=torch.float16),
    "d": torch.tensor(1.0),
    "e": torch.zeros(1, 2, 1, 1, dtype=torch.bfloat16),
}
GOOD = safetensors.torch.save(TENSORS, {"k": "v", "tags": '{"a": [1, 2]}'})


def compact(content: object, data: bytes = bytes(32)) -> bytes:
    return raw(json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode(), data)


def text(inner: str, data: bytes = bytes(16)) -> bytes:
    return raw(inner.encode(), data)


TENSOR = '"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'
NEAR = {
    "in_another_order": compact({"b": B, "a": A}),
    "no_order_and_a_hole": compact({"b": entry(20, 32), "a": A}),
    "fields_in_another_order": compact({"a": dict(reversed(entry(0, 32).items()))}),
    "no_order_and_one_begins_early": compact({"b": entry(12, 32, shape=[4]), "a": A}),
    "one_begins_early": compact({"a": A, "b": entry(12, 32, shape=[4])}),
    "the_first_begins_late": compact({"a": entry(8, 32)}),
    "an_overlap": compact({"a": A, "b": entry(8, 32)}),
    "data_beyond_the_last": compact({"a": A}),
    "longer_than_the_data": compact({"a": A, "b": entry(16, 36)}),
    "one_twice": text("{" + TENSOR + "," + TENSOR + "}"),
    "two_in_one_place": compact({"a": entry(0, 32), "b": entry(0, 32)}),
    "a_name_with_a_tab": text("{" + TENSOR.replace('"a"', '"a\tb"') + "}"),
    "a_name_with_an_escape": text("{" + TENSOR.replace('"a"', r'"\u0061"') + "}"),
    "a_name_with_a_quote": text("{" + TENSOR.replace('"a"', r'"a\"b"') + "}"),
    "a_name_turned_around": compact({"a\u202e": entry(0, 32)}),
    "the_longest_name": compact({"n" * MAX_NAME: entry(0, 32)}),
    "a_longer_name": compact({"n" * (MAX_NAME + 1): entry(0, 32)}),
    "no_name": compact({"": entry(0, 32)}),
    "a_size_with_a_zero_before_it": text("{" + TENSOR.replace("[4]", "[04]") + "}"),
    "an_offset_with_a_zero_before_it": text("{" + TENSOR.replace("16", "016") + "}"),
    "two_zeros_for_an_offset": text("{" + TENSOR.replace("[0,", "[00,") + "}"),
    "an_offset_with_a_sign": text("{" + TENSOR.replace("[0,", "[-0,") + "}"),
    "an_offset_of_twenty_digits": text("{" + TENSOR.replace("16", "1" + "0" * 19) + "}"),
    "a_comma_behind_the_sizes": text("{" + TENSOR.replace("[4]", "[4,]") + "}"),
    "a_comma_alone": text("{" + TENSOR.replace("[4]", "[,]") + "}"),
    "a_comma_behind_the_last": text("{" + TENSOR + ",}"),
    "no_comma_between": text("{" + TENSOR + TENSOR.replace('"a"', '"b"') + "}"),
    "two_braces": text("{" + TENSOR + "}}"),
    "not_closed": text("{" + TENSOR),
    "a_null_behind_it": text("{" + TENSOR + "}\0"),
    "an_odd_space_behind_it": text("{" + TENSOR + "}\u00a0"),
    "a_space_behind_it": text("{" + TENSOR + "} \n"),
    "a_space_inside": text("{ " + TENSOR + "}"),
    "an_unknown_dtype": compact({"a": entry(0, 32, dtype="F8_E4M3", shape=[32])}),
    "a_size_of_nothing": compact({"a": entry(0, 32), "b": entry(32, 32, shape=[0])}),
    "the_largest_size": compact({"a": entry(0, MAX_DIM, dtype="U8", shape=[MAX_DIM])}),
    "a_larger_size": compact({"a": entry(0, MAX_DIM + 1, dtype="U8", shape=[MAX_DIM + 1])}),
    "nine_dimensions": compact({"a": entry(0, 32, shape=[1] * 8 + [8])}),
    "eight_dimensions": compact({"a": entry(0, 32, shape=[1] * 7 + [8])}),
    "a_size_too_much": compact({"a": entry(0, 32, shape=[9])}),
    "metadata_behind_it": compact({"a": entry(0, 32), "__metadata__": {"k": "v"}}),
    "metadata_twice": text('{"__metadata__":{"k":"v"},' + TENSOR + ',"__metadata__":{"k":"v"}}'),
    "metadata_that_is_a_tensor": compact({"__metadata__": A, "a": B}),
    "metadata_first_and_a_tensor_of_that_name": text(
        '{"__metadata__":{},' + TENSOR.replace('"a"', '"__metadata__"') + "}"
    ),
    "metadata_of_pairs": compact({"__metadata__": [["k", "v"]], "a": entry(0, 32)}),
    "metadata_of_nothing": compact({"__metadata__": {}, "a": entry(0, 32)}),
    "metadata_null": compact({"__metadata__": None, "a": entry(0, 32)}),
    "metadata_with_a_number": compact({"__metadata__": {"k": 1}, "a": entry(0, 32)}),
    "metadata_in_metadata": compact({"__metadata__": {"k": {}}, "a": entry(0, 32)}),
    "metadata_with_one_key_twice": text('{"__metadata__":{"k":"1","k":"1"},' + TENSOR + "}"),
    "metadata_with_a_surrogate": text(r'{"__metadata__":{"k":"\ud800"},' + TENSOR + "}"),
    "metadata_with_an_escape": text('{"__metadata__":{"k":"\\u001b[2J"},' + TENSOR + "}"),
    "metadata_key_with_an_escape": text('{"__metadata__":{"\\u001b[2J":"v"},' + TENSOR + "}"),
    "metadata_alone": compact({"__metadata__": {"k": "v"}}, b""),
    "metadata_and_no_comma": text('{"__metadata__":{"k":"v"}' + TENSOR + "}"),
    "bytes_that_are_no_text": raw(b"{" + TENSOR.encode().replace(b'"a"', b'"\xff"') + b"}"),
}


def judged(path: Path) -> str:
    """What a file's header says, in its order, or why it is refused."""
    try:
        return repr(safe.read_header(path))
    except AdapterFileError as error:
        return str(error)


def both_ways(path: Path, content: bytes) -> tuple[str, str]:
    """What is made of a file with the quick way, and what without it."""
    path.write_bytes(content)
    quick = judged(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safe, "plain_header", lambda text, data_size: None)
        return quick, judged(path)


PLAIN = (
    "in_another_order",
    "the_longest_name",
    "eight_dimensions",
    "a_space_behind_it",
    "metadata_of_nothing",
)


def taken(content: bytes, data_size: int) -> bool:
    return plain_header(content[8 : 8 + int.from_bytes(content[:8], "little")], data_size) is not None


@pytest.mark.parametrize("name", PLAIN)
def test_what_need_not_be_gone_through_is_not(name: str) -> None:
    content = NEAR[name]
    assert taken(content, len(content) - 8 - int.from_bytes(content[:8], "little"))


def test_no_size_is_larger_than_a_tensor_may_have() -> None:
    assert taken(NEAR["the_largest_size"], MAX_DIM)
    assert not taken(NEAR["a_larger_size"], MAX_DIM + 1)


@pytest.mark.parametrize("name", [*NEAR, *MALFORMED])
def test_what_is_nearly_plain_is_judged_as_ever(tmp_path: Path, name: str) -> None:
    quick, slow = both_ways(tmp_path / "a.safetensors", NEAR.get(name) or MALFORMED[name][0])
    assert quick == slow


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good file of which some bytes of the header were set to others, doubled or removed."""
    content = bytearray(GOOD)
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(8, len(content) - 1))
        stop = place + draw(st.integers(1, 4))
        match draw(st.sampled_from(("set", "copy", "drop"))):
            case "set":
                content[place] = draw(st.sampled_from(list(b'{}[],:"0123456789-.\\ \x00\xffFBabc')))
            case "copy":
                content[place:place] = content[place:stop]
            case _:
                del content[place:stop]
    length = int.from_bytes(GOOD[:8], "little") + len(content) - len(GOOD)
    return length.to_bytes(8, "little") + bytes(content[8:])


@settings(max_examples=500)
@given(content=mutated())
def test_any_change_is_judged_as_ever(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    quick, slow = both_ways(tmp_path_factory.getbasetemp() / "mutated.safetensors", content)
    assert quick == slow


def test_the_files_of_other_projects_are_plain(fixtures: Path) -> None:
    files = [*(fixtures / "adapters").rglob("*.safetensors")]
    assert len(files) > 10
    for path in files:
        with open(path, "rb") as file:
            header = file.read(int.from_bytes(file.read(8), "little"))
            found = plain_header(header, len(file.read()))
        assert found is not None, path
        assert found.tensors.keys() == safetensors.torch.load_file(path).keys()
