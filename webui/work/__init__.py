"""What jobs do, one file a kind. A new kind is one file here and one line in WORK."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from webui.work.arithmetic import (
    Baking,
    Comparing,
    Converting,
    Meeting,
    Merging,
    Resizing,
    baking,
    comparing,
    converting,
    meeting,
    merging,
    resizing,
)
from webui.work.contact import Contact, contact
from webui.work.desk import Desk, Done
from webui.work.draw import Draw, draw
from webui.work.training import Training, training


@dataclass(frozen=True, slots=True)
class Work:
    """What a request of the model `wanted` makes a job do."""

    wanted: type[BaseModel]
    run: Callable[..., Done]


WORK: Mapping[str, Work] = {
    "generate": Work(Draw, draw),
    "grid": Work(Contact, contact),
    "train": Work(Training, training),
    "merge": Work(Merging, merging),
    "resize": Work(Resizing, resizing),
    "convert": Work(Converting, converting),
    "bake": Work(Baking, baking),
    "meet": Work(Meeting, meeting),
    "compare": Work(Comparing, comparing),
}

__all__ = ["WORK", "Desk", "Done", "Work"]
