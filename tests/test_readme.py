"""The README tells the truth: its file tree is the disk's, and its commands are understood."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

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
