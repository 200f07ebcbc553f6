"""Every error difflora raises on purpose, one tree:

    DiffloraError
    ├── ConfigError          a training option or request has a value that cannot be used
    ├── DataError            the folder of images to learn from (all problems in one message)
    ├── BaseModelError       a base model cannot be loaded, or is not what was asked for
    ├── AdapterFileError     an adapter file cannot be read or written
    ├── AdapterError         the factors of an adapter contradict each other
    │   └── NeedsBase        this kind of update can only be computed from the base weight
    ├── FitError             an adapter does not fit this model
    ├── ApplyError           a stack is applied where it cannot be (inside a merged one ...)
    ├── GenerationError      the model produced numbers that are no image
    ├── PromptError          prompt syntax
    ├── RecipeError          a recipe or PNG text cannot be read or replayed
    ├── LibraryError         an adapter name or hash that the library cannot resolve
    ├── CheckpointError      a checkpoint is damaged, or belongs to another run
    └── TrainingError        training cannot go on (non-finite loss ...)
        ├── AlreadyTrained   the adapter is there already, and overwriting was not asked for
        └── Interrupted      somebody asked the run to stop; its state was saved

A message has four parts: what happened, where, what was expected against what was found, and the next step.
"""

from collections.abc import Sequence


class DiffloraError(Exception):
    """Base of every error that difflora raises on purpose."""


class ConfigError(DiffloraError):
    """An option has a value that cannot be used."""


class DataError(DiffloraError):
    """The training folder has problems; the message names all of them."""


class BaseModelError(DiffloraError):
    """A base model cannot be loaded, or is not of the expected family."""


class AdapterFileError(DiffloraError):
    """An adapter file cannot be read or written."""


class AdapterError(DiffloraError):
    """The factors of an adapter contradict each other."""


class NeedsBase(AdapterError):
    """This kind of update is a function of the base weight, and none was given."""


class FitError(DiffloraError):
    """An adapter does not fit the model it is applied to."""


class ApplyError(DiffloraError):
    """A stack is applied in a place or a way that is not possible."""


class GenerationError(DiffloraError):
    """The model produced numbers that are no image."""


class PromptError(DiffloraError):
    """Prompt syntax that cannot be understood."""


class RecipeError(DiffloraError):
    """A recipe cannot be read or replayed."""


class LibraryError(DiffloraError):
    """A name or hash that names no adapter, or more than one."""


class CheckpointError(DiffloraError):
    """A checkpoint is damaged or belongs to another run."""


class TrainingError(DiffloraError):
    """Training cannot go on."""


class AlreadyTrained(TrainingError):
    """The finished adapter is there already, and overwriting was not asked for."""


class Interrupted(TrainingError):
    """Somebody asked the run to stop; its state was saved, and the same command continues."""


def is_memory(error: BaseException) -> bool:
    """Whether memory has run out, of the device or, which torch tells by words alone, of the computer."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY))


_NO_MEMORY = ("can't allocate memory", "not enough memory")  # torch's words: on Linux and macOS, on Windows


def span(numbers: Sequence[int]) -> str:
    """From the least of some numbers to the largest, in words."""
    return f"{min(numbers)} to {max(numbers)}" if len(set(numbers)) > 1 else "".join(map(str, numbers[:1]))


def listing(items: Sequence[str], limit: int = 5) -> str:
    """The first `limit` items, one a line and indented, with the number of those left out."""
    lines = [f"  {item}" for item in items[:limit]]
    if len(items) > limit:
        lines.append(f"  ... and {len(items) - limit} more")
    return "\n".join(lines)
