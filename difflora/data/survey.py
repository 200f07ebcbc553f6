"""A folder of images looked at before a training: what would be learned from, and what is wrong."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from difflora.data.buckets import Bucket, assign_by
from difflora.data.dataset import Item, Problem
from difflora.data.folder import scan
from difflora.data.options import DataOptions
from difflora.errors import DataError


@dataclass(frozen=True, slots=True)
class Survey:
    """What `survey` finds.

    `buckets`: (width, height) -> number of images. `duplicates`: names of images with the same bytes.
    `blown_up`: name -> factor of images that are enlarged. `refusal` is the error that a training would
    raise, "" if it would begin.
    """

    items: tuple[Item, ...] = ()
    problems: tuple[Problem, ...] = ()
    ignored: tuple[str, ...] = ()
    buckets: Mapping[Bucket, int] = field(default_factory=dict)
    duplicates: tuple[tuple[str, ...], ...] = ()
    blown_up: Mapping[str, float] = field(default_factory=dict)
    refusal: str = ""


def survey(options: DataOptions, *, resolution: int) -> Survey:
    """Every image of `options.data` with its caption and bucket, and every problem; raises nothing about
    them.

    `resolution` is the base's own, which counts where the options have none.
    """
    refusal = ""
    try:
        dataset = scan(options)
    except DataError as error:
        refusal = str(error)
        try:
            dataset = scan(options.model_copy(update={"skip_bad": True}))
        except DataError:
            return Survey(refusal=refusal)
    assigned = assign_by(dataset.sizes, options, native=resolution)
    buckets: dict[Bucket, int] = {}
    for bucket in assigned.sizes:
        buckets[bucket] = buckets.get(bucket, 0) + 1
    same: dict[str, list[str]] = defaultdict(list)
    for item in dataset.items:
        same[item.sha256].append(item.name)
    return Survey(
        dataset.items,
        dataset.skipped,
        dataset.ignored,
        dict(sorted(buckets.items())),
        tuple(tuple(names) for names in same.values() if len(names) > 1),
        {item.name: scale for item, scale in zip(dataset.items, assigned.scale, strict=True) if scale > 1.0},
        refusal,
    )
