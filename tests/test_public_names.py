"""The public names: all there, lazily, and the same whatever was imported first."""

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import difflora


def python(code: str) -> str:
    """What a fresh interpreter prints for `code`."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", difflora.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert not isinstance(getattr(difflora, name), ModuleType)


def test_the_table_the_list_and_the_imports_for_type_checkers_agree() -> None:
    assert sorted([*difflora._HOMES, "__version__"]) == sorted(difflora.__all__)
    source = Path(str(difflora.__file__)).read_text(encoding="utf-8")
    source = re.sub(r"\(\s+((?:\w+,\s+)+)\)", lambda names: ", ".join(re.findall(r"\w+", names[1])), source)
    for module, names in difflora._NAMES.items():
        assert f"    from difflora.{module} import {', '.join(names)}\n" in source


def test_importing_difflora_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, time; start = time.process_time(); import difflora; took = time.process_time() - start;"
        "assert took < 0.5, took;"
        "print(sorted({'torch', 'diffusers', 'transformers', 'gradio', 'pydantic'} & set(sys.modules)))"
    )
    assert python(code) == "[]"


def test_core_names_import_neither_diffusers_nor_gradio() -> None:
    code = (
        "import sys; from difflora import Adapter, Stack, Weight, applied, fits, read, write, inspect;"
        "print(sorted({'diffusers', 'transformers', 'gradio'} & set(sys.modules)))"
    )
    assert python(code) == "[]"


MODULES, FUNCTIONS = "import difflora.generate, difflora.grid", "from difflora import generate, grid"


@pytest.mark.parametrize("first", [MODULES, FUNCTIONS])
def test_functions_keep_their_name_beside_the_module_of_the_same_name(first: str) -> None:
    code = (
        f"{first}\n{MODULES}\n"
        "print(callable(difflora.generate), callable(difflora.grid), difflora.generate.__module__)"
    )
    assert python(code) == "True True difflora.generate"


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        getattr(difflora, "nothing_of_this_name")  # noqa: B009
