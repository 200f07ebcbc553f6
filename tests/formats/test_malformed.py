"""Every malformed file is refused in a second, with an error that names the file and what in it is wrong."""

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difflora.adapter import Adapter
from difflora.errors import AdapterFileError
from difflora.formats import inspect, read, write
from difflora.formats.container import read_tensors
from tests.commandline import verbs
from tests.formats.malformed import (
    ACCEPTED_BY_THE_LIBRARY,
    HEADERS,
    HTML_IN_METADATA,
    MALFORMED,
    TEXT,
    K,
    adapter,
    raw,
)

SECONDS = 1.0


@pytest.fixture(scope="module", autouse=True)
def _tables_are_loaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The families' tables of names are read once a process; that is not the refusal's time."""
    path = tmp_path_factory.mktemp("good") / "good.safetensors"
    path.write_bytes(adapter({}))
    assert len(read(path).modules) == 1


def test_the_corpus_is_what_it_claims_to_be() -> None:
    assert len(MALFORMED) >= 60 and len(ACCEPTED_BY_THE_LIBRARY) == 17
    for content in (*(MALFORMED[name][0] for name in ACCEPTED_BY_THE_LIBRARY), HTML_IN_METADATA):
        safetensors.torch.load(content)


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_refused(tmp_path: Path, name: str) -> None:
    content, expected = MALFORMED[name]
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(content)
    start = time.process_time()
    with pytest.raises(AdapterFileError, match=expected) as caught:
        read(path)
    assert time.process_time() - start < SECONDS
    message = str(caught.value)
    assert str(path) in message and len(message) < 2000
    assert all(letter.isprintable() or letter == "\n" for letter in message)
    start = time.process_time()
    report = inspect(path)
    assert time.process_time() - start < SECONDS
    if name in HEADERS:
        assert not report.ok or name == "bool_that_is_neither"
        with pytest.raises(AdapterFileError, match=expected):
            read_tensors(path)


def test_html_in_metadata_is_text(tmp_path: Path) -> None:
    """It is kept, since a comment may be about HTML, and stays the same text when it is written again."""
    path, again = tmp_path / "page.safetensors", tmp_path / "again.safetensors"
    path.write_bytes(HTML_IN_METADATA)
    report, found = inspect(path), read(path)
    assert report.ok and len(found.modules) == 1
    assert set(report.metadata.values()) == {TEXT}
    assert (found.meta.name, found.meta.trigger, report.name, report.trigger) == (TEXT,) * 4
    write(found, again)
    assert read(again).meta.training["ss_training_comment"] == TEXT
    assert (read(again).meta.name, read(again).meta.trigger) == (TEXT, TEXT)


def test_html_in_metadata_is_printed_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither markup nor escapes nor templates are made anything of."""
    path = tmp_path / "page.safetensors"
    path.write_bytes(HTML_IN_METADATA)
    cli = verbs(capsys)
    shown = cli("show", path, "--metadata")
    assert shown.code == 0 and shown.out.count(TEXT) >= 5
    assert set(json.loads(cli("show", path, "--json").out)["metadata"].values()) == {TEXT}
    compared = cli("compare", path, path)
    assert compared.code == 0 and "[bold]loud[/bold] :boom:" in " ".join(compared.out.split())
    assert not any("\x1b" in said.out or "\u202e" in said.out for said in (shown, compared))


GOOD = adapter({}, {"ss_output_name": "good"})
VALUES = (
    0,
    1,
    -1,
    4,
    2**31,
    2**63,
    2**70,
    0.5,
    True,
    None,
    "",
    "F32",
    "F16",
    "U8",
    [],
    {},
    "\x00",
    [1, 2, 3, 4],
)


def values() -> st.SearchStrategy[Any]:
    """One of VALUES, a copy of its own: a header may be changed more than once."""
    return st.sampled_from(VALUES).map(copy.deepcopy)


@st.composite
def changed_headers(draw: Callable[..., Any]) -> bytes:
    """A good adapter with some parts of its header replaced, renamed, removed or added."""
    length = int.from_bytes(GOOD[:8], "little")
    header, data = json.loads(GOOD[8 : 8 + length]), GOOD[8 + length :]
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(header)))
        fields = header[name]
        match draw(st.sampled_from(("drop", "rename", "replace", "field", "item", "data"))):
            case "drop" if len(header) > 1:
                del header[name]
            case "rename":
                header[draw(st.sampled_from((f"{K}.alpha", "x", "", "bundle_emb.cat.clip_l", "é\u202e")))] = (
                    header.pop(name)
                )
            case "replace":
                header[name] = draw(values())
            case "field" if isinstance(fields, dict):
                fields[draw(st.sampled_from((*fields, "more")))] = draw(values())
            case "item" if isinstance(fields, dict) and isinstance(fields.get("shape"), list):
                field = fields[draw(st.sampled_from(("shape", "data_offsets")))]
                if isinstance(field, list) and field:
                    field[draw(st.integers(0, len(field) - 1))] = draw(values())
            case "data":
                data = data[: draw(st.integers(0, len(data)))] + draw(st.binary(max_size=8))
    return raw(json.dumps(header).encode(), data)


@st.composite
def changed_bytes(draw: Callable[..., Any]) -> bytes:
    """A good adapter with some bytes set to others, anywhere."""
    content = bytearray(GOOD)
    for place, value in draw(
        st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=6)
    ):
        content[place] = value
    return bytes(content[: draw(st.integers(len(GOOD) // 2, len(GOOD)))])


@settings(max_examples=400)
@given(content=st.one_of(changed_headers(), changed_bytes()))
def test_any_change_gives_an_adapter_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    path.write_bytes(content)
    inspect(path)
    try:
        found = read(path)
    except AdapterFileError as refusal:
        assert str(path) in str(refusal)
        return
    assert isinstance(found, Adapter) and (found.modules or found.tokens)
    safetensors.torch.load(content)
