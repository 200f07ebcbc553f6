from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from difflora.data.buckets import Buckets
from difflora.data.plan import Sample, batches_per_epoch, epoch_batches, flipped, share


@st.composite
def plans(draw):
    count = draw(st.integers(1, 25))
    buckets = draw(st.lists(st.sampled_from([(64, 64), (72, 56), (56, 72)]), min_size=count, max_size=count))
    repeats = draw(st.lists(st.integers(1, 4), min_size=count, max_size=count))
    return Buckets(tuple(buckets), (0.0,) * count, (1.0,) * count), tuple(repeats)


numbers = {"seed": st.integers(0, 2**63), "epoch": st.integers(0, 1000), "batch_size": st.integers(1, 9)}


@given(plans(), st.fixed_dictionaries(numbers))
def test_every_image_occurs_as_often_as_its_repeats_say(plan, key):
    buckets, repeats = plan
    batches = epoch_batches(buckets, repeats, **key)
    seen = Counter(sample for batch in batches for sample in batch.items)
    assert seen == {Sample(index, turn): 1 for index, count in enumerate(repeats) for turn in range(count)}


@given(plans(), st.fixed_dictionaries(numbers))
def test_batches_are_full_and_of_one_bucket(plan, key):
    buckets, repeats = plan
    batches = epoch_batches(buckets, repeats, **key)
    assert len(batches) == batches_per_epoch(buckets, repeats, batch_size=key["batch_size"])
    smaller = Counter(batch.bucket for batch in batches if len(batch.items) < key["batch_size"])
    assert max(smaller.values(), default=0) <= 1
    for batch in batches:
        assert 1 <= len(batch.items) <= key["batch_size"]
        assert {buckets.sizes[sample.item_index] for sample in batch.items} == {batch.bucket}


@given(plans(), st.fixed_dictionaries(numbers), st.integers(1, 7))
def test_the_shares_of_all_processes_are_the_batch(plan, key, processes):
    for batch in epoch_batches(*plan, **key):
        shares = [share(batch, process=process, processes=processes) for process in range(processes)]
        assert tuple(sample for part in shares for sample in part.items) == batch.items
        counts = [len(part.items) for part in shares]
        assert max(counts) - min(counts) <= 1 and {part.bucket for part in shares} == {batch.bucket}


@given(plans(), st.fixed_dictionaries(numbers))
def test_the_plan_is_a_function_of_seed_and_epoch(plan, key):
    assert epoch_batches(*plan, **key) == epoch_batches(*plan, **key)


def test_seeds_and_epochs_differ():
    buckets = Buckets(((64, 64),) * 50, (0.0,) * 50, (1.0,) * 50)
    orders = {
        epoch_batches(buckets, (1,) * 50, seed=seed, epoch=epoch, batch_size=1)
        for seed in range(5)
        for epoch in range(5)
    }
    assert len(orders) == 25


def test_buckets_are_mixed_over_the_epoch():
    buckets = Buckets(((64, 64),) * 40 + ((72, 56),) * 40, (0.0,) * 80, (1.0,) * 80)
    batches = epoch_batches(buckets, (1,) * 80, seed=0, epoch=0, batch_size=2)
    first = [batch.bucket for batch in batches[:20]]
    assert 4 < first.count((64, 64)) < 16


def test_half_of_the_samples_are_mirrored_and_not_always_the_same():
    samples = [Sample(index, turn) for index in range(200) for turn in range(2)]
    first = [flipped(sample, seed=1, epoch=0) for sample in samples]
    assert 150 < sum(first) < 250
    assert first == [flipped(sample, seed=1, epoch=0) for sample in samples]
    assert first != [flipped(sample, seed=1, epoch=1) for sample in samples]
    assert first != [flipped(sample, seed=2, epoch=0) for sample in samples]
