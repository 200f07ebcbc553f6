"""The command line: `difflora VERB ...`, each verb a module of `difflora.commands`, imported when asked for.

Exit codes: 0 done, 1 an error (one message, no traceback), 2 wrong usage, 130 after Ctrl-C, 143 after
SIGTERM.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import NoReturn

from difflora.errors import DiffloraError, Interrupted, is_memory

VERBS: Mapping[str, str] = {
    "train": "Learn an adapter from a folder of images; continues after an interruption.",
    "generate": "Draw images with any weighted mix of adapters, or reproduce one from its file.",
    "grid": "Draw a contact sheet over two of: weight, adapter, seed, steps, guidance, prompt.",
    "merge": "Write a weighted mix of adapters as one adapter, exactly or of a chosen rank.",
    "resize": "Write an adapter of a lower rank, and say what was lost.",
    "extract": "Write the difference of two models as an adapter.",
    "bake": "Write a base model with adapters merged into it.",
    "compare": "Say how alike adapters are, and what becomes of each in a mix.",
    "convert": "Write an adapter in another format, or out of a pickle.",
    "library": "List the adapters in folders, and find one by name or hash.",
    "show": "Say what a base model, an adapter file or an image is.",
    "ui": "Serve the web UI: train, generate and blend in a browser.",
    "demo": "Train two styles and a subject on the small base that comes along, and blend them.",
}


def main() -> NoReturn:
    """Runs `difflora` with the process's arguments; ends it with the exit code by raising SystemExit."""
    _prepare_process()
    raise SystemExit(_dispatch(sys.argv[1:]))


def _dispatch(words: Sequence[str]) -> int:
    verb = words[0] if words else "--help"
    if verb in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if verb == "--version":
        from importlib.metadata import version

        print(f"difflora {version('difflora')}")
        return 0
    if verb not in VERBS:
        return _unknown(verb)
    return _guarded(verb, words[1:])


def _guarded(verb: str, words: Sequence[str]) -> int:
    """Runs one verb; errors become one message and an exit code."""
    try:
        return importlib.import_module(f"difflora.commands.{verb}").run(words)
    except Interrupted as message:
        print(message, file=sys.stderr)
        return 128 + (signal.SIGTERM if "SIGTERM" in str(message) else signal.SIGINT)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of our output is gone (`difflora show ... | head`): nothing may be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if "--debug" in words:
            traceback.print_exc()
        else:
            print(_message(error), file=sys.stderr)
        return 1


def _message(error: Exception) -> str:
    """An error in words that its reader can act on, and what was noted of it on its way."""
    return "\n".join([_words(error), *getattr(error, "__notes__", [])])


def _words(error: Exception) -> str:
    if isinstance(error, DiffloraError):
        return f"error: {error}"
    if isinstance(error, OSError) and error.filename:
        return f"error: {error.filename}: {error.strerror}"
    if is_memory(error):
        return (
            f"error: out of memory ({error})\nUse a smaller --batch-size or --batch, a smaller size, "
            "--gradient-checkpointing when training, --offload when drawing on a GPU, or --dtype bf16."
        )
    return (
        f"error: {type(error).__name__}: {error}\n"
        "This was not foreseen and may be a bug; the same command with --debug shows where it happened."
    )


def _prepare_process() -> None:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if (
            reconfigure is not None
        ):  # a Windows console of another code page must not end a run over a character
            reconfigure(errors="replace")
    logging.getLogger("transformers.utils.import_utils").addFilter(_is_news)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end)


def _is_news(record: logging.LogRecord) -> bool:
    """torchvision is not needed here; transformers mentions its absence each time it is imported."""
    return "requires torchvision" not in record.getMessage()


def _end(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends the process through its `finally` blocks, so that no half-written file stays."""
    raise SystemExit(128 + number)


def _overview() -> str:
    lines = [f"  {verb:10} {text}" for verb, text in VERBS.items()]
    return "\n".join(
        [
            "usage: difflora VERB [OPTIONS]",
            "",
            "Train, blend and apply LoRA adapters for diffusion models.",
            "",
            *lines,
            "",
            "difflora VERB --help lists the options of a verb. --debug shows the traceback of an error.",
            "Try: difflora demo",
        ]
    )


def _unknown(verb: str) -> int:
    near = difflib.get_close_matches(verb, VERBS, n=1)
    guess = f" Did you mean `difflora {near[0]}`?" if near else ""
    print(f"error: difflora has no verb {verb!r}.{guess}\nVerbs: {', '.join(VERBS)}", file=sys.stderr)
    return 2
