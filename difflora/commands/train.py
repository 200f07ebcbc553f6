"""`difflora train`."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from difflora.commands.console import follow, make_console
from difflora.commands.flags import Shown, grouped, option_group, parse, require
from difflora.errors import AlreadyTrained, ConfigError
from difflora.training.config import TrainConfig, configure
from difflora.training.presets import PRESETS, preset_values

ABOUT = """Learns an adapter from a folder of images and writes OUTPUT/NAME.safetensors.

The same command continues after an interruption. A preset gives every option a value that suits the base
(`--preset style --help` shows them); options in --config override the preset, flags override both.

difflora train --preset style --base-model sample_data/shapes-sd --data sample_data/styles/halftone
--output out --name halftone"""


class FileOptions(BaseModel):
    """Where else options come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: Path | None = Field(
        None, description="TOML file with options under the names below (base_model = ...)."
    )
    debug: bool = Field(False, description="Show the traceback of an error.")


GROUPS: tuple[type[BaseModel], ...] = tuple(reversed(TrainConfig.__bases__))


def run(words: Sequence[str]) -> int:
    """Trains; returns the exit code."""
    shown = Shown(aliases={"precision": "--dtype"}, **_preset_shown(words))
    names = {_heading(group): option_group(group, shown=shown) for group in GROUPS}
    flags: Any = parse(grouped(file=option_group(FileOptions), **names), words, verb="train", about=ABOUT)
    given = {name: value for heading in names for name, value in getattr(flags, heading).items()}
    values = _joined(flags.file.get("config"), given)
    require(TrainConfig, values, verb="train", besides=", as flags or in --config FILE")
    config = configure(values)
    console = make_console()
    try:
        from difflora.training.loop import train

        last = follow(train(config), console, label=config.name)
    except AlreadyTrained as message:
        console.print(str(message))
        return 0
    if last is not None and last.adapter is not None:
        _report(console, config, last.adapter)
    return 0


def _heading(group: type[BaseModel]) -> str:
    return group.__name__.removesuffix("Options").lower()


def _preset_shown(words: Sequence[str]) -> dict[str, Any]:
    """The values of the preset named in `words`, for `--preset style --help`."""
    preset, base = _value("--preset", words), _value("--base-model", words)
    if not {"-h", "--help"} & set(words) or preset is None or preset not in PRESETS:
        return {}
    from difflora.families import identify

    variant = identify(base).variant if base is not None else "sd15"
    return {"values": preset_values(preset, variant), "source": f"{preset} on {variant}"}


def _value(flag: str, words: Sequence[str]) -> str | None:
    """The value of a flag, without parsing the rest."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == flag:
            return value if equals else following
    return None


def _joined(file: Path | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the file with the flags over them."""
    values = {} if file is None else read_toml(file)
    if {"steps", "epochs"} & set(given):  # two ways to say one thing: the file's way yields as well
        values = {name: value for name, value in values.items() if name not in ("steps", "epochs")}
    return {**values, **given}


def read_toml(path: Path) -> dict[str, Any]:
    """The training options of a TOML file. "none" stands for no value, where an option may have none.

    Raises ConfigError naming every unknown option and what may have been meant.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error
    unknown = [_suggestion(name) for name in values if name not in TrainConfig.model_fields]
    if unknown:
        raise ConfigError(
            f"{path}: unknown options:\n" + "\n".join(unknown) + "\nOptions have the names of the flags in "
            "`difflora train --help`, with _ for - between words, and stand outside any [table]."
        )
    return {name: None if _is_none(name, value) else value for name, value in values.items()}


def _suggestion(name: str) -> str:
    near = difflib.get_close_matches(name.replace("-", "_"), TrainConfig.model_fields, n=1)
    return f"  {name}" + (f" (did you mean {near[0]}?)" if near else "")


def _is_none(name: str, value: Any) -> bool:
    return value == "none" and type(None) in get_args(TrainConfig.model_fields[name].annotation)


def _report(console: Console, config: TrainConfig, adapter: Path) -> None:
    """What was written, and what to do with it."""
    prompt = config.preview_prompts[0] if config.preview_prompts else "..."
    clip_skip = f" --clip-skip {config.clip_skip}" if config.clip_skip != 1 else ""
    console.print(f"wrote {adapter} ({adapter.stat().st_size / 2**20:.1f} MiB)")
    console.print(f"wrote {adapter.with_suffix('.training.json')}")
    console.print(
        f'draw with it: difflora generate --base-model "{config.base_model}" --adapters "{config.output}" '
        f'--prompt "{prompt} <lora:{config.name}:1>"{clip_skip}'
    )
