"""The judge learns, is kept, and is trained anew when the world changes."""

from pathlib import Path

import pytest
import torch

from benchmarks import judge as judging
from benchmarks.exam import lessons
from benchmarks.judge import JudgeOptions, new_net, sight, spoil, trained_judge

FEW = JudgeOptions(pictures=320, epochs=6, batch=32)


def test_the_network_is_small_and_its_weights_are_those_of_the_seed() -> None:
    one, same, other = (new_net(seed).state_dict() for seed in (1, 1, 2))
    assert sum(parameter.numel() for parameter in new_net(1).parameters()) <= 300_000
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_a_short_training_learns_to_tell_backgrounds_and_is_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = trained_judge(FEW, cache=tmp_path)
    images, wanted = zip(*lessons(60, seed="unseen"), strict=True)
    seen = judge(images)
    right = sum(one.background == two.background for one, two in zip(seen, wanted, strict=True))
    assert right > 20  # by chance it would be 6
    monkeypatch.setattr(judging, "_train", lambda *_: pytest.fail("trained again"))
    assert trained_judge(FEW, cache=tmp_path)(images) == seen


def test_the_key_follows_the_options_and_the_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert FEW.key != JudgeOptions().key
    before, other = FEW.key, tmp_path / "world.py"
    other.write_text("changed")
    monkeypatch.setattr(judging.world, "__file__", str(other))
    assert FEW.key != before


def test_pictures_are_seen_at_half_size_and_spoiled_within_range() -> None:
    (image, _), *_ = lessons(1, seed="one")
    pixels = sight([image, image.resize((256, 256))])
    assert pixels.shape == (2, 3, 64, 64)
    spoiled = spoil(pixels, torch.Generator().manual_seed(0))
    assert spoiled.shape == pixels.shape and spoiled.abs().max() <= 1
    assert not torch.equal(spoiled, pixels)
