"""Where a run writes, and the record it leaves beside the adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from difflora.files import atomic_write
from difflora.training.config import TrainConfig


@dataclass(frozen=True, slots=True)
class Results:
    """The files of a run.

    OUTPUT/NAME.safetensors          the adapter
    OUTPUT/NAME.safetensors.replaced the one before, until an overwriting run has finished
    OUTPUT/NAME.training.json        configuration, data, environment, times
    OUTPUT/checkpoints/NAME/         states to resume from
    OUTPUT/previews/NAME/            images drawn while training
    OUTPUT/logs/NAME/                TensorBoard
    """

    adapter: Path
    replaced: Path
    record: Path
    checkpoints: Path
    previews: Path
    logs: Path


def results_of(config: TrainConfig) -> Results:
    """The files that a run with this configuration writes."""
    root, name = config.output, config.name
    return Results(
        adapter=root / f"{name}.safetensors",
        replaced=root / f"{name}.safetensors.replaced",
        record=root / f"{name}.training.json",
        checkpoints=root / "checkpoints" / name,
        previews=root / "previews" / name,
        logs=root / "logs",
    )


def set_aside(results: Results) -> None:
    """Removes the checkpoints of an earlier run, and gives its adapter the name that leaves room for another:
    an overwriting run can so be continued without the flag."""
    shutil.rmtree(results.checkpoints, ignore_errors=True)
    if results.adapter.exists():
        results.adapter.replace(results.replaced)


def write_record(path: Path, facts: Mapping[str, Any]) -> None:
    """Writes NAME.training.json: what the adapter's own file leaves out because it would differ from run to
    run."""
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps({"finished_at": finished, **facts}, indent=2, ensure_ascii=False)
    atomic_write(path, f"{text}\n".encode())
