"""Which samples each step sees: a pure function of (seed, epoch), the same for any number of processes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from difflora.data.buckets import Bucket, Buckets
from difflora.draws import permutation, uniform


@dataclass(frozen=True, slots=True)
class Sample:
    """One showing of an image: `item_index` into the dataset, `repeat_index` below the item's repeats."""

    item_index: int
    repeat_index: int


@dataclass(frozen=True, slots=True)
class Batch:
    """The samples of one step over all processes, all of one bucket; a process' own share may be empty."""

    items: tuple[Sample, ...]
    bucket: Bucket


def epoch_batches(
    buckets: Buckets, repeats: Sequence[int], *, seed: int, epoch: int, batch_size: int
) -> tuple[Batch, ...]:
    """Every batch of an epoch in order; each sample occurs once, each image as often as `repeats` says.

    `batch_size` counts the images of all processes. Samples are shuffled inside their bucket and cut into
    batches, whose order is then shuffled; the last batch of a bucket may be smaller and is kept.
    """
    batches = []
    for bucket, members in buckets.groups.items():
        samples = [Sample(index, repeat) for index in members for repeat in range(repeats[index])]
        order = permutation(len(samples), seed, "samples", epoch, *bucket)
        shuffled = [samples[place] for place in order]
        for start in range(0, len(shuffled), batch_size):
            batches.append(Batch(tuple(shuffled[start : start + batch_size]), bucket))
    return tuple(batches[place] for place in permutation(len(batches), seed, "batches", epoch))


def batches_per_epoch(buckets: Buckets, repeats: Sequence[int], *, batch_size: int) -> int:
    """How many batches `epoch_batches` gives, the same for every epoch."""
    totals = (sum(repeats[index] for index in members) for members in buckets.groups.values())
    return sum(-(-total // batch_size) for total in totals)


def share(batch: Batch, *, process: int, processes: int) -> Batch:
    """The consecutive part of a batch that one process computes; sizes differ by one at most and may be 0.

    The shares of all processes, in their order, are the batch.
    """
    rows = share_of(len(batch.items), process=process, processes=processes)
    return replace(batch, items=batch.items[rows.start : rows.stop])


def share_of(count: int, *, process: int, processes: int) -> range:
    """The rows of `count` that one process computes; see `share`."""
    return range(process * count // processes, (process + 1) * count // processes)


def flipped(sample: Sample, *, seed: int, epoch: int) -> bool:
    """Whether a sample is mirrored in this epoch, where flips are on: half of them are."""
    return uniform(seed, "flip", epoch, sample.item_index, sample.repeat_index) < 0.5
