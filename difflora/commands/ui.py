"""`difflora ui`: the web UI, on this computer."""

from __future__ import annotations

from collections.abc import Sequence

from difflora.commands.flags import parse

ABOUT = """Serves the web UI at http://127.0.0.1:7860, to this computer alone: train, generate and blend.

difflora ui --loras ~/models/Lora

Pictures, adapters and the queue are kept in the folder of --output. To let other computers reach the page,
add users with --auth FILE --add-user NAME, then give --listen --auth FILE."""


def run(words: Sequence[str]) -> int:
    """Serves until Ctrl-C; returns the exit code."""
    from webui.app import Flags, main

    return main(parse(Flags, words, verb="ui", about=ABOUT))
