"""Pickles become safetensors files in a child process; this process never loads one."""

import os
import pickle
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from difflora.errors import AdapterFileError
from difflora.formats import pickles
from difflora.formats.container import read_tensors
from difflora.formats.pickles import convert_pickle, is_pickle
from difflora.formats.unpickle import named_tensors

VECTORS = torch.arange(12.0).reshape(3, 4)


@pytest.fixture(autouse=True)
def _nothing_is_unpickled_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A pickle loaded in this process fails the test; audit hooks cannot be removed, so it is switched."""
    monkeypatch.setattr(_Watch, "on", True)
    yield


class _Watch:
    on = False


def _forbid(event: str, arguments: tuple[Any, ...]) -> None:
    if _Watch.on and event == "pickle.find_class":
        raise AssertionError(f"{arguments} was looked up by a pickle in the main process")


sys.addaudithook(_forbid)


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_an_embedding_of_a1111_becomes_emb_params(tmp_path: Path) -> None:
    content = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": VECTORS},
        "name": "old",
        "step": 500,
    }
    found = convert_pickle(saved(tmp_path / "old.pt", content), tmp_path / "cat.safetensors")
    assert found.path == tmp_path / "cat.safetensors" and found.tensors == 1
    assert sorted(found.left_out) == ["name", "step", "string_to_token"]
    (name, vectors), *more = read_tensors(found.path).tensors.items()
    assert not more and name == "emb_params" and torch.equal(vectors, VECTORS)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_a_pickle_may_be() -> None:
    """Every layout that is known, without the cost of a process."""
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(VECTORS)})
    tensors, left_out = named_tensors({"string_to_param": parameters, "string_to_token": {"*": 1}})
    assert torch.equal(tensors["emb_params"], VECTORS) and not tensors["emb_params"].requires_grad
    assert left_out == ["string_to_token"]
    tensors, left_out = named_tensors({"state_dict": {"a.b": VECTORS, "steps": 3}, "epoch": 7})
    assert list(tensors) == ["a.b"] and left_out == ["epoch", "steps"]
    assert list(named_tensors({"<cat>": VECTORS[0]})[0]) == ["<cat>"]
    assert list(named_tensors({"clip_l": VECTORS, "clip_g": VECTORS})[0]) == ["clip_l", "clip_g"]


def test_a_checkpoint_that_names_its_trainer_keeps_its_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As sd-v1-4.ckpt does."""
    place = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(place)
    trainer = type("ModelCheckpoint", (), {"__module__": place})
    module.ModelCheckpoint = trainer
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, place, module)
    first = torch.nn.ParameterDict({"x": torch.nn.Parameter(VECTORS)})
    content = {"state_dict": {"a.b": VECTORS}, "callbacks": {trainer: {"best": VECTORS}}, "first": first}
    found = convert_pickle(saved(tmp_path / "base.ckpt", content), tmp_path / "base.safetensors")
    assert found.tensors == 1 and found.left_out == ("callbacks", "first")
    assert torch.equal(read_tensors(found.path).tensors["a.b"], VECTORS)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([VECTORS, VECTORS], "a list, whose tensors have no names"),
        ({"epoch": 3, "lr": 0.1}, "no tensors, but epoch, lr"),
        ({"state_dict": {"step": 1}}, "no tensors, but state_dict"),
        ({"string_to_param": {"*": VECTORS, "+": VECTORS}}, "2 embeddings, expected one"),
        ({"thin": VECTORS.to_sparse()}, "sparse or quantised, the first being thin"),
    ],
)
def test_what_cannot_be_converted_is_said(content: object, expected: str) -> None:
    with pytest.raises(AdapterFileError, match=expected):
        named_tensors(content)


class Attack:
    """A pickle that would leave a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("ending", ["pt", "CKPT", "bin", "safetensors"])
def test_a_program_is_not_run(tmp_path: Path, ending: str) -> None:
    trace, path = tmp_path / "was-here", tmp_path / f"evil.{ending}"
    saved(path, {"a": VECTORS, "b": Attack(trace)})
    with pytest.raises(AdapterFileError, match=r"evil.*wants to use \w+\.mkdir.*may be an attack"):
        convert_pickle(path, tmp_path / "out.safetensors")
    with pytest.raises(AdapterFileError, match=r'run: difflora convert ".*evil'):
        read_tensors(path)
    assert not trace.exists() and not (tmp_path / "out.safetensors").exists()


def test_a_bare_pickle_that_is_a_program_is_not_run(tmp_path: Path) -> None:
    trace, path = tmp_path / "was-here", tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps(Attack(trace), protocol=2))
    with pytest.raises(AdapterFileError, match="not converted"):
        convert_pickle(path, tmp_path / "out.safetensors")
    assert not trace.exists()


def test_a_small_file_that_stands_for_a_huge_tensor_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "bomb.pt", {"vast": torch.zeros(1).expand(2**20, 2**20)})
    with pytest.raises(AdapterFileError, match="claim 4398046511104 bytes"):
        convert_pickle(path, tmp_path / "out.safetensors")


@pytest.mark.skipif(os.name != "posix", reason="the system has no limits of memory")
def test_a_file_that_inflates_beyond_memory_is_stopped(tmp_path: Path) -> None:
    small, path = saved(tmp_path / "small.pt", {"a": torch.zeros(1024)}), tmp_path / "zip-bomb.pt"
    with (
        zipfile.ZipFile(small) as old,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for entry in old.infolist():
            if entry.filename.endswith("/data/0"):
                with new.open(entry.filename, "w", force_zip64=True) as data:
                    for _ in range(145):
                        data.write(bytes(16 << 20))
            else:
                new.writestr(entry.filename, old.read(entry))
    with pytest.raises(AdapterFileError, match=r"zip-bomb\.pt: not converted: .*allocate"):
        convert_pickle(path, tmp_path / "out.safetensors")


def test_damaged_files_and_wrong_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = saved(tmp_path / "whole.pt", {"a": VECTORS}).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AdapterFileError, match=r"cut\.pt: not converted: .*damaged"):
        convert_pickle(tmp_path / "cut.pt", tmp_path / "out.safetensors")
    with pytest.raises(AdapterFileError, match=r"ends in \.safetensors"):
        convert_pickle(tmp_path / "whole.pt", tmp_path / "out.pt")
    with pytest.raises(AdapterFileError, match="cannot be written: No such file"):
        convert_pickle(tmp_path / "whole.pt", tmp_path / "absent" / "out.safetensors")
    (tmp_path / "text.safetensors").write_text("no pickle")
    with pytest.raises(AdapterFileError, match="is no pickle"):
        convert_pickle(tmp_path / "text.safetensors", tmp_path / "out.safetensors")
    with pytest.raises(AdapterFileError, match="cannot be opened"):
        is_pickle(tmp_path / "absent.pt")
    monkeypatch.setattr(pickles, "MAX_PICKLE", 100)
    with pytest.raises(AdapterFileError, match="the limit for a pickle"):
        convert_pickle(tmp_path / "whole.pt", tmp_path / "out.safetensors")
    monkeypatch.undo()
    monkeypatch.setattr(pickles, "MAX_SECONDS", 0.01)
    with pytest.raises(AdapterFileError, match="took more than"):
        convert_pickle(tmp_path / "whole.pt", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
