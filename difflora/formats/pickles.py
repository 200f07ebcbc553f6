"""Pickles (.pt, .ckpt, .bin) made safetensors files, without ever being loaded in this process.

A pickle is a program. A child process reads it with torch's reader for tensors alone (`weights_only=True`),
under limits of memory, time and file size; this process sees only the safetensors file it wrote, which is
checked like any other, and its report.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from difflora.errors import AdapterFileError
from difflora.formats.peft import CONFIG, PICKLE, TENSORS, configured
from difflora.formats.safe import PICKLE_SUFFIXES, begins_as_pickle, clip, open_any, read_header

MAX_PICKLE = 16 << 30
MAX_SECONDS = 600

_CHILD = "difflora.formats.unpickle"
_ROOT = Path(__file__).parents[2]
_WANTED = re.compile(r"GLOBAL ([\w.]+)")


@dataclass(frozen=True, slots=True)
class Converted:
    """A safetensors file made from a pickle.

    `tensors` counts those written; `left_out` names what the pickle held beside them: step counts, names,
    the states of optimizers.
    """

    path: Path
    tensors: int
    left_out: tuple[str, ...]


def is_pickle(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one for `convert_pickle`: by its ending, or by how it begins.

    Raises AdapterFileError if it is no plain file or cannot be opened.
    """
    with open_any(path) as file:
        size = os.fstat(file.fileno()).st_size
        return Path(path).suffix.lower() in PICKLE_SUFFIXES or begins_as_pickle(file.read(8), size)


def convert_pickle(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Converted:
    """Writes the tensors of the pickle `source` as the safetensors file `target`, and says what was left out.

    Names and values stay as they are, except that an embedding of A1111 becomes `emb_params` and the
    tensors of a checkpoint's `state_dict` lose that level. What the file is for is not judged here: `read`
    does that.

    Raises AdapterFileError if the pickle wants more than tensors, holds none that have names, is damaged or
    beyond the limits; a file that was there before is then untouched.
    """
    origin, goal = Path(source), Path(target)
    if not is_pickle(origin):
        raise AdapterFileError(
            f"{origin}: is no pickle, so there is nothing to unpack; `read` takes it as it is"
        )
    if goal.suffix.lower() != ".safetensors":
        raise AdapterFileError(f"{goal}: cannot be written: expected a name that ends in .safetensors")
    size = origin.stat().st_size
    if size > MAX_PICKLE:
        raise AdapterFileError(
            f"{origin}: {size >> 30} GiB, the limit for a pickle is {MAX_PICKLE >> 30} GiB"
        )
    try:
        with tempfile.TemporaryDirectory(prefix=".convert-", dir=goal.parent) as folder:
            written = Path(folder) / "converted.safetensors"
            report = _run(origin, written)
            read_header(written)
            os.replace(written, goal)
    except OSError as error:
        raise AdapterFileError(
            f"{goal}: cannot be written: {error.strerror}. What was there before is unchanged"
        ) from error
    return Converted(goal, report.tensors, report.left_out)


def readable(source: Path, folder: Path) -> Converted:
    """`source` itself, or, where it is a pickle or a PEFT folder of pickles, a copy in `folder` without any.

    The pickle of a PEFT folder stands for the folder, whose configuration says how strongly its tensors act.
    Raises AdapterFileError as `convert_pickle` does.
    """
    whole = peft_of(source)
    if whole is None:
        if not source.is_file() or not is_pickle(source):
            return Converted(source, 0, ())
        return convert_pickle(source, folder / f"{source.stem}.safetensors")
    copy = folder / whole.resolve().name
    made: list[Converted] = []
    for one in configured(whole):
        target = copy / one.relative_to(whole)
        target.mkdir(parents=True)
        shutil.copyfile(one / CONFIG, target / CONFIG)
        if source.name == PICKLE or not (one / TENSORS).exists():
            made.append(convert_pickle(one / PICKLE, target / TENSORS))
        else:
            shutil.copyfile(one / TENSORS, target / TENSORS)
    names = tuple(name for part in made for name in part.left_out)
    return Converted(copy, sum(part.tensors for part in made), names)


def peft_of(source: Path) -> Path | None:
    """The PEFT folder of pickles that `source` is, or is the pickle of; None if it is something else."""
    if source.name == PICKLE and (source.parent / CONFIG).is_file():
        return source.parent
    pickled = (one for one in configured(source) if (one / PICKLE).is_file() and not (one / TENSORS).exists())
    return source if any(pickled) else None


@dataclass(frozen=True, slots=True)
class _Report:
    tensors: int
    left_out: tuple[str, ...]


def _run(source: Path, target: Path) -> _Report:
    """What the child process that wrote `target` says. Raises AdapterFileError if it wrote none."""
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""}
    try:
        child = subprocess.run(
            [sys.executable, "-m", _CHILD, str(source.resolve()), str(target.resolve())],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=target.parent,
            env=environment,
            timeout=MAX_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise AdapterFileError(
            f"{source}: not converted: reading it took more than {MAX_SECONDS} s"
        ) from error
    if child.returncode == 0:
        report = json.loads(child.stdout)
        return _Report(int(report["tensors"]), tuple(clip(str(name)) for name in report["left_out"]))
    raise AdapterFileError(f"{source}: not converted: {_reason(child)}")


def _reason(child: "subprocess.CompletedProcess[bytes]") -> str:
    lines = child.stderr.decode(errors="replace").strip().splitlines() or ["no reason was given"]
    if child.returncode < 0:
        return (
            f"the process that read it was stopped by signal {-child.returncode}, as happens where a file "
            "wants more memory or time than it may have"
        )
    if wanted := _WANTED.search(child.stderr.decode(errors="replace")):
        return (
            f"it does not only hold tensors: to be loaded, it wants to use {clip(wanted[1])}. It may be an "
            "attack; if you trust who made it, ask for a .safetensors file"
        )
    return f"{clip(lines[-1], 300)}. It is damaged, or no file of tensors; download or export it again"
