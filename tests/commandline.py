"""One verb of the command line, run in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import difflora.cli


@dataclass(frozen=True)
class Said:
    """What a command returned and printed."""

    code: int
    out: str
    err: str


Cli = Callable[..., Said]


def verbs(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs `difflora WORDS...` as it does after its set-up of the process."""

    def run(*words: str | Path) -> Said:
        capsys.readouterr()
        try:
            code = difflora.cli._dispatch([str(word) for word in words])
        except SystemExit as ended:
            code = int(ended.code or 0)
        printed = capsys.readouterr()
        return Said(code, printed.out, printed.err)

    return run
