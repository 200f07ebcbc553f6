"""Preserved samples: what the base predicts without the trigger is what an adapter is to predict as well."""

from dataclasses import replace

import pytest
import torch

from difflora.data.captions import without_trigger
from difflora.training.loss import draw
from difflora.training.results import results_of
from difflora.training.run import prepared

TRIGGER = "halftone style"


@pytest.mark.parametrize("text", [False, True])
def test_the_target_of_preserved_rows_is_the_base_and_of_the_others_the_picture(small, text: bool) -> None:
    config = small(trigger=TRIGGER, preservation=0.5, train_text_encoder=text, batch_size=4)
    with prepared(config, results_of(config)) as run:
        rows = range(run.examples.size(0))
        inputs = run.examples.load(0, rows)
        noised = draw(inputs.latents, run.diffusion, config, seed=config.seed, batch=0, rows=rows)
        for factor in run.injected.factors:  # as after some training
            for parameter in factor.parameters.values():
                parameter.data.normal_(0, 0.3)
        kept = run.with_preserved(noised, inputs)
        learned = run.predict(noised, inputs)
        with run.injected.off():
            base = run.predict(noised, replace(inputs, text=run.examples.condition(inputs.captions)))
    assert 0 < len(inputs.preserved) < 4
    for row in rows:
        is_preserved = row in inputs.preserved
        assert (TRIGGER in inputs.captions[row]) != is_preserved
        expected = base[row] if is_preserved else noised.target[row]
        torch.testing.assert_close(kept.target[row], expected, rtol=0, atol=1e-5)
        assert not torch.allclose(learned[row], base[row], atol=1e-3)


def test_preserved_rows_are_a_share_of_all_and_the_same_on_every_run(small) -> None:
    config = small(trigger=TRIGGER, preservation=0.25)
    with prepared(config, results_of(config)) as run:
        found = [run.examples.load(number, range(2)) for number in range(40)]
        again = [run.examples.load(number, range(2)) for number in range(40)]
    count = sum(len(inputs.preserved) for inputs in found)
    assert 8 <= count <= 34
    assert [inputs.preserved for inputs in found] == [inputs.preserved for inputs in again]
    for inputs in found:
        for row, caption in enumerate(inputs.captions):
            assert (row in inputs.preserved) == (without_trigger(caption, TRIGGER) == caption)


def test_a_dropped_caption_has_no_trigger_and_keeps_the_base_too(small) -> None:
    config = small(trigger=TRIGGER, preservation=0.01, caption_dropout=0.5)
    with prepared(config, results_of(config)) as run:
        found = [run.examples.load(number, range(2)) for number in range(20)]
    dropped = [caption == "" for inputs in found for caption in inputs.captions]
    kept = [row in inputs.preserved for inputs in found for row in range(2)]
    assert 8 <= sum(dropped) <= 32 and all(keep for keep, drop in zip(kept, dropped, strict=True) if drop)
    assert sum(kept) < len(kept)


def test_without_the_option_nothing_is_preserved(small) -> None:
    config = small(trigger=TRIGGER)
    with prepared(config, results_of(config)) as run:
        inputs = run.examples.load(0, range(2))
        noised = draw(inputs.latents, run.diffusion, config, seed=7, batch=0, rows=range(2))
        assert inputs.preserved == [] and run.with_preserved(noised, inputs) is noised
