"""What can be installed beside difflora is there to be used."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_library_of_every_extra_is_used_somewhere() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    sources = [file.read_text(encoding="utf-8") for file in (ROOT / "difflora").rglob("*.py")]
    for extra in extras.keys() - {"dev"}:
        for requirement in extras[extra]:
            library = re.split(r"[<>=\[]", requirement)[0].replace("-", "_")
            assert any(re.search(rf"import {library}\b|['\"]{library}", source) for source in sources), extra
