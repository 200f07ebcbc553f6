"""The shape of the code: imports point down, files and functions stay small, registries are complete.

Every rule is a pure function from source to a list of violations, and has its negative control here too.
"""

import ast
import inspect
import pkgutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path

import pytest

import difflora
from difflora.families import FAMILIES, Family
from difflora.formats import FORMATS, Format
from difflora.kinds import KINDS, Kind

ROOT = Path(__file__).parents[1]

# A module may import from the layers above its own line in this table, never from its own line or one below.
# `difflora` is the package itself: the public names.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "files", "threads"),
    ("kinds", "sheet"),
    ("adapter", "draws"),
    ("samplers", "prompts", "vocabulary"),
    ("recipe",),
    ("families",),
    ("fit", "latent_colours"),
    ("formats", "apply"),
    ("inject", "algebra", "encode"),
    ("library", "data", "render"),
    ("generate",),
    ("grid",),
    ("training",),
    ("difflora",),
    ("demo",),
    ("commands",),
    ("cli",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

PUBLIC_MODULES = ("difflora", "difflora.errors")

# Writes the tables that the package ships, from the package's own skeletons.
USES_INTERNALS = ("train_scripts/make_path_tables.py",)

MAX_FILE, MEDIAN_FILE = 400, 120
MAX_FUNCTION, P90_FUNCTION = 70, 40
MAX_PARAMETERS = 9


def sources(*folders: str) -> dict[str, str]:
    """Path relative to the root -> source of every Python file under the folders."""
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    return {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in files}


PRODUCT = sources("difflora", "webui", "train_scripts")


def imports(source: str) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """(line, module, names) of every import that runs, also inside functions; names is () for `import x`."""
    tree = ast.parse(source)
    for_checkers = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if node in for_checkers:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (
                node.lineno,
                "." * node.level + (node.module or ""),
                tuple(alias.name for alias in node.names),
            )


def layers_of(module: str, names: tuple[str, ...]) -> set[str]:
    """The entries of LAYERS that an import touches: `difflora.kinds.lora` -> {"kinds"}."""
    parts = module.split(".")
    if len(parts) > 1:
        return {parts[1]}
    return {name if name in LEVEL and name not in difflora.__all__ else "difflora" for name in names or ("",)}


def upward(path: str, source: str) -> list[str]:
    """What a file of difflora imports from its own layer or one below it."""
    own = Path(path).parts[1].removesuffix(".py")
    if own in ("__init__", "__main__"):
        return []
    if own not in LEVEL:
        return [f"{path}: {own!r} has no place in LAYERS yet; put it where its imports allow"]
    found = []
    for line, module, names in imports(source):
        if module.startswith("."):
            found.append(f"{path}:{line}: relative import of {module}; write difflora...")
        if module.split(".")[0] != "difflora":
            continue
        for target in layers_of(module, names) - {own}:
            if LEVEL.get(target, len(LAYERS)) >= LEVEL[own]:
                found.append(f"{path}:{line}: {own} imports {module} ({target}), which is not below it")
    return found


def internals(path: str, source: str) -> list[str]:
    """What a file outside the package uses of difflora beside its public names."""
    found, used = [], set[tuple[int, str]]()
    for line, module, names in imports(source):
        if module == "difflora":
            used |= {(line, name) for name in names}
        elif module.split(".")[0] == "difflora" and module not in PUBLIC_MODULES:
            found.append(f"{path}:{line}: {module} is internal; import from difflora")
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="difflora"), attr=name):
                used.add((node.lineno, name))
    public = {*difflora.__all__, *(module.removeprefix("difflora.") for module in PUBLIC_MODULES)}
    return found + [
        f"{path}:{line}: difflora.{name} is not public" for line, name in used if name not in public
    ]


def test_imports_point_down() -> None:
    inside = {path: source for path, source in PRODUCT.items() if path.startswith("difflora/")}
    found = [line for path, source in inside.items() for line in upward(path, source)]
    assert not found, "\n".join(found)


def test_the_web_ui_and_the_scripts_use_public_names_only() -> None:
    outside = {path: source for path, source in PRODUCT.items() if not path.startswith("difflora/")}
    checked = {path: source for path, source in outside.items() if path not in USES_INTERNALS}
    found = [line for path, source in checked.items() for line in internals(path, source)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("difflora/adapter.py", "from difflora.apply import applied"),
        ("difflora/adapter.py", "from difflora import apply"),
        ("difflora/adapter.py", "from difflora import load"),
        ("difflora/adapter.py", "import difflora"),
        ("difflora/adapter.py", "import difflora.apply"),
        ("difflora/adapter.py", "def f():\n    from difflora.cli import main"),
        ("difflora/adapter.py", "from .apply import applied"),
        ("difflora/formats/kohya.py", "from difflora.apply import applied"),
        ("difflora/library.py", "from difflora.data.folder import scan"),
        ("difflora/newcomer.py", ""),
    ],
)
def test_an_import_upward_or_sideways_is_found(path: str, source: str) -> None:
    assert upward(path, source)


def test_imports_downward_within_a_package_and_for_type_checkers_are_fine() -> None:
    down = "from difflora.kinds import LoRA\nfrom difflora import errors"
    checkers = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from difflora.cli import main"
    assert not upward("difflora/adapter.py", f"{down}\n{checkers}")
    assert not upward("difflora/kinds/lora.py", "from difflora.kinds.kind import Kind")
    assert not upward("difflora/cli.py", "from difflora import generate, load")


@pytest.mark.parametrize(
    "source",
    [
        "from difflora.apply import applied",
        "from difflora import apply",
        "import difflora\ndifflora.apply.attach()",
    ],
)
def test_internals_used_outside_are_found(source: str) -> None:
    assert internals("webui/app.py", source)


def test_public_names_used_outside_are_fine() -> None:
    source = (
        "from difflora import load\nfrom difflora.errors import DataError\nimport difflora\ndifflora.grid()"
    )
    assert not internals("webui/app.py", source)


def functions(source: str) -> Iterator[tuple[str, int, int]]:
    """(name, lines, parameters without self and cls) of every function and method."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            parameters = [argument for argument in arguments if argument.arg not in ("self", "cls")]
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1, len(parameters)


def oversized(files: Mapping[str, str]) -> list[str]:
    """Files and functions beyond the hard limits."""
    found = []
    for path, source in files.items():
        if (lines := source.count("\n")) > MAX_FILE:
            found.append(f"{path}: {lines} lines, at most {MAX_FILE}")
        for name, length, parameters in functions(source):
            if length > MAX_FUNCTION:
                found.append(f"{path}: {name} has {length} lines, at most {MAX_FUNCTION}")
            if parameters > MAX_PARAMETERS:
                found.append(f"{path}: {name} has {parameters} parameters, at most {MAX_PARAMETERS}")
    return found


def p90(lengths: Sequence[int]) -> float:
    """The length that nine of ten stay within."""
    return statistics.quantiles(lengths, n=10)[-1]


def test_files_and_functions_are_small() -> None:
    found = oversized(PRODUCT | sources("tests"))
    assert not found, "\n".join(found)


def test_most_files_and_functions_fit_a_screen() -> None:
    assert statistics.median(source.count("\n") for source in PRODUCT.values()) <= MEDIAN_FILE
    assert p90([length for source in PRODUCT.values() for _, length, _ in functions(source)]) <= P90_FUNCTION


def test_what_is_too_large_is_found() -> None:
    names = ", ".join(f"a{number}" for number in range(MAX_PARAMETERS))
    assert oversized({"a.py": "\n" * (MAX_FILE + 1)})
    assert oversized({"a.py": "def f():\n" + "    pass\n" * MAX_FUNCTION})
    assert oversized({"a.py": f"def f({names}, *, last): ..."})
    assert not oversized({"a.py": f"class A:\n    def f(self, {names}): ..."})
    assert p90([10] * 80 + [60] * 20) > P90_FUNCTION


def members(package: str, base: type) -> dict[str, object]:
    """`module.name` -> instances and concrete subclasses of `base` that a package's modules define."""
    found: dict[str, object] = {}
    for info in pkgutil.iter_modules(import_module(package).__path__):
        module = import_module(f"{package}.{info.name}")
        tops = ast.parse(inspect.getsource(module)).body
        assigned = {
            ast.unparse(target)
            for node in tops
            if isinstance(node, ast.Assign | ast.AnnAssign)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        }
        for name, value in vars(module).items():
            if isinstance(value, type):
                is_own = value.__module__ == module.__name__ and value is not base
                is_member = is_own and issubclass(value, base) and not inspect.isabstract(value)
            else:
                is_member = isinstance(value, base) and name in assigned
            if is_member:
                found[f"{module.__name__}.{name}"] = value
    return found


def unlisted(found: Mapping[str, object], registry: Sequence[object]) -> list[str]:
    """Those of which neither they nor an instance of theirs is in the registry."""
    listed = [*registry, *(type(entry) for entry in registry if not isinstance(entry, type))]
    return [name for name, value in found.items() if not any(value is entry for entry in listed)]


@pytest.mark.parametrize(
    ("package", "base", "registry"),
    [
        ("difflora.kinds", Kind, KINDS),
        ("difflora.families", Family, FAMILIES),
        ("difflora.formats", Format, FORMATS),
    ],
)
def test_every_member_of_a_package_is_in_its_registry(
    package: str, base: type, registry: Sequence[object]
) -> None:
    found = members(package, base)
    assert len(found) == len(registry)
    assert not unlisted(found, registry)
    assert unlisted(found, registry[1:]), "the check itself finds a member that is left out"
