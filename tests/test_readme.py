"""The README tells the truth: its file tree is the disk's, and its commands are understood."""

import ast
import importlib
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

import difflora
from difflora.cli import VERBS
from difflora.errors import AlreadyTrained
from difflora.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"

# Folders whose contents the tree shows.
OPENED = ("difflora/", "webui/", "train_scripts/", "sample_data/")


def tree_of(readme: str) -> dict[str, set[str]]:
    """Folder -> names in it, as the README's tree shows them; '' is the root. Closed ones have no entry."""
    tree: dict[str, set[str]] = {"": set()}
    folder = ""
    for line in readme.split("\n## Files\n", 1)[1].split("```")[1].splitlines()[1:]:
        name = line.split()[0]
        if line.startswith(" "):
            tree.setdefault(folder, set()).add(name)
        else:
            folder = name
            tree[""].add(name)
    return tree


def tree_on_disk(files: Sequence[str]) -> dict[str, set[str]]:
    """The top two levels of a list of files: folder -> names in it, folders with a slash; '' is the root."""
    tree: dict[str, set[str]] = {"": set()}
    for file in files:
        top, *rest = file.split("/")
        tree[""].add(f"{top}/" if rest else top)
        if rest:
            tree.setdefault(f"{top}/", set()).add(f"{rest[0]}/" if len(rest) > 1 else rest[0])
    return tree


def differences(
    shown: Mapping[str, set[str]], real: Mapping[str, set[str]], opened: Sequence[str]
) -> list[str]:
    """Where the README's tree differs from the disk; folders in `opened` must be shown open."""
    found = [f"{folder} is shown closed" for folder in opened if folder not in shown]
    for folder, names in shown.items():
        here = {name for name in real.get(folder, set()) if not name.startswith((".", "__init__"))}
        found += [f"{folder}{name} is missing in the README" for name in sorted(here - names)]
        found += [f"{folder}{name} is in the README only" for name in sorted(names - here)]
    return found


def test_the_tree_equals_the_disk() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("needs git to tell the project's files from generated ones")
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    real = tree_on_disk([file for file in listed if (ROOT / file).exists()])
    found = differences(tree_of(README.read_text(encoding="utf-8")), real, OPENED)
    assert not found, "\n".join(found)


def test_a_wrong_tree_is_found() -> None:
    shown = tree_of("# x\n\n## Files\n```\na.py   one\nb/     two\n  c.py  three\n```\n")
    assert shown == {"": {"a.py", "b/"}, "b/": {"c.py"}}
    real = tree_on_disk(["a.py", "b/c.py", "b/__init__.py", ".hidden"])
    assert not differences(shown, real, ["b/"])
    assert differences(shown, tree_on_disk(["a.py", "b/c.py", "b/d/e.py"]), [])
    assert differences(shown, tree_on_disk(["b/c.py"]), [])
    assert differences({"": {"a.py", "b/"}}, real, ["b/"])


def blocks(language: str) -> list[str]:
    """The fenced blocks of the README in one language."""
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def commands() -> list[tuple[str, ...]]:
    """(verb, words ...) of every difflora command in a block of shell lines, whatever launches it."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line) for line in lines]
    return [tuple(line[line.index("difflora") + 1 :]) for line in words]


def unknown_flags(words: Sequence[str], help_text: str) -> list[str]:
    """The flags among `words` that a help text does not list."""
    known = set(re.findall(r"--[a-z][a-z-]*", help_text))
    return [word.split("=")[0] for word in words if word.startswith("--") and word.split("=")[0] not in known]


def test_there_is_a_command_for_every_main_task() -> None:
    assert {verb for verb, *_ in commands()} == set(VERBS) - {"demo"}  # the demo is make's
    assert any("--from" in words for words in commands())


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_has_a_known_verb_and_known_flags(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    verb, *rest = words
    assert verb in VERBS
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"difflora.commands.{verb}").run(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert not unknown_flags(rest, text)
    assert unknown_flags([*rest, "--no-such-flag"], text) == ["--no-such-flag"]


@pytest.mark.parametrize("words", [words for words in commands() if words[0] == "train"], ids=" ".join)
def test_every_training_command_makes_a_configuration(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[TrainConfig] = []

    def not_now(config: TrainConfig) -> Iterator[object]:
        made.append(config)
        raise AlreadyTrained("this is a test")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("difflora.training.loop.train", not_now)
    assert importlib.import_module("difflora.commands.train").run(list(words[1:])) == 0
    assert "this is a test" in capsys.readouterr().out
    (config,) = made
    assert config.data.is_dir() and Path(config.base_model).is_dir()


def test_make_targets_and_files_that_it_names_exist() -> None:
    text = README.read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = set(re.findall(r"\bmake ([a-z-]+)", text))
    assert {"demo", "ui", "test", "lint"} <= named <= set(targets)
    for file in ("tests/test_layering.py", "constraints.txt", "LICENSE", "difflora/families/assets/NOTICE"):
        assert f"`{file}`" in text and (ROOT / file).is_file()


def test_python_in_it_uses_public_names() -> None:
    (code,) = blocks("python")
    imported = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    assert [node.module for node in imported] == ["difflora"]
    assert {alias.name for node in imported for alias in node.names} <= set(difflora.__all__)
