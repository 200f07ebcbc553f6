from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from difflora.data.cache import LatentCache, Moments, TextCache
from difflora.data.folder import scan
from difflora.data.options import DataOptions
from difflora.data.pixels import load_pixels
from difflora.data.store import Counts
from difflora.encode import TextConditioning
from difflora.errors import DataError, TrainingError
from tests.data import corpus

BUCKET = (64, 48)


@dataclass
class Vae:
    """Counts its calls; its moments depend on the pixels and nothing else."""

    seen: list[tuple[int, ...]] = field(default_factory=list)
    factor: float = 1.0

    def __call__(self, pixels: Tensor) -> Moments:
        self.seen.append(tuple(pixels.shape))
        mean = torch.nn.functional.avg_pool2d(pixels, 8)
        return Moments(self.factor * mean, mean.abs())


@pytest.fixture
def item(tmp_path):
    return put(tmp_path, seed=0)


def put(root: Path, *, seed: int):
    folder = root / "images"
    folder.mkdir(exist_ok=True)
    (folder / "x.bmp").write_bytes(corpus.encoded(corpus.picture(seed=seed), "BMP"))
    return scan(DataOptions(data=folder, trigger="x")).items[0]


def same(one: Moments, other: Moments) -> bool:
    return torch.equal(one.mean, other.mean) and torch.equal(one.std, other.std)


def the_file(folder: Path) -> Path:
    (path,) = folder.rglob("*.safetensors")
    return path


def test_an_image_is_encoded_once(item):
    vae = Vae()
    cache = LatentCache(vae, encoder="vae")
    first, second = cache.get(item, BUCKET), cache.get(item, BUCKET)
    assert same(first, second) and vae.seen == [(1, 3, 48, 64)]
    assert first.mean.shape == (3, 6, 8) and first.mean.dtype == torch.float32
    assert cache.counts == Counts(memory=1, computed=1)


def test_fresh_latents_have_the_same_bits_and_are_not_kept(item, tmp_path):
    vae = Vae()
    cache = LatentCache(vae, encoder="vae", folder=tmp_path / "c")
    for flip in (False, True):
        assert same(cache.fresh(item, BUCKET, flip=flip), cache.fresh(item, BUCKET, flip=flip))
        assert not list((tmp_path / "c").rglob("*.safetensors")) or flip
        assert same(cache.fresh(item, BUCKET, flip=flip), cache.get(item, BUCKET, flip=flip))
    assert len(vae.seen) == 8 and cache.counts == Counts(computed=2)


def test_the_next_run_reads_the_same_bits_from_disk(item, tmp_path):
    first = LatentCache(Vae(), encoder="vae", folder=tmp_path / "c").get(item, BUCKET)
    vae = Vae()
    again = LatentCache(vae, encoder="vae", folder=tmp_path / "c")
    assert same(first, again.get(item, BUCKET)) and not vae.seen
    assert again.counts == Counts(disk=1)


def test_bucket_side_encoder_and_content_part_the_entries(item, tmp_path):
    vae = Vae()
    cache = LatentCache(vae, encoder="vae", folder=tmp_path / "c")
    plain = cache.get(item, BUCKET)
    mirrored = cache.get(item, BUCKET, flip=True)
    assert torch.equal(mirrored.mean, plain.mean.flip(2)) and not torch.equal(mirrored.mean, plain.mean)
    assert cache.get(item, (48, 48)).mean.shape == (3, 6, 6)
    LatentCache(vae, encoder="other vae", folder=tmp_path / "c").get(item, BUCKET)
    assert len(vae.seen) == 4
    size = item.path.stat().st_size
    edited = put(tmp_path, seed=1)
    assert edited.path == item.path and edited.path.stat().st_size == size
    assert not same(cache.get(edited, BUCKET), plain) and len(vae.seen) == 5


def test_an_image_edited_after_the_scan_is_refused(item, tmp_path):
    put(tmp_path, seed=1)
    with pytest.raises(DataError, match=r"x\.bmp: the file has changed since"):
        LatentCache(Vae(), encoder="vae").get(item, BUCKET)
    item.path.unlink()
    with pytest.raises(DataError, match=r"x\.bmp: cannot be read"):
        load_pixels(item, BUCKET, flip=False)


@pytest.mark.parametrize("damage", ["cut", "empty", "first byte", "middle", "last byte", "folder"])
def test_a_damaged_entry_is_computed_again_and_counted(item, tmp_path, damage):
    folder = tmp_path / "c"
    first = LatentCache(Vae(), encoder="vae", folder=folder).get(item, BUCKET)
    path = the_file(folder)
    data = path.read_bytes()
    places = {"first byte": 0, "middle": len(data) // 2, "last byte": len(data) - 1}
    wrong = {"cut": data[:-9], "empty": b"", "folder": b""}
    path.write_bytes(wrong[damage] if damage in wrong else corpus.changed(data, places[damage]))
    cache = LatentCache(Vae(), encoder="vae", folder=folder)
    assert same(first, cache.get(item, BUCKET))
    assert cache.counts == Counts(computed=1, replaced=1)
    assert path.read_bytes() == data


def test_an_entry_under_the_name_of_another_is_not_believed(item, tmp_path):
    folder = tmp_path / "c"
    cache = LatentCache(Vae(), encoder="vae", folder=folder)
    plain = cache.get(item, BUCKET)
    path = the_file(folder)
    cache.get(item, BUCKET, flip=True)
    (other,) = set(folder.rglob("*.safetensors")) - {path}
    path.write_bytes(other.read_bytes())
    again = LatentCache(Vae(), encoder="vae", folder=folder)
    assert same(again.get(item, BUCKET), plain) and again.counts.replaced == 1


def test_a_cache_that_cannot_be_written_says_what_to_do(item, tmp_path):
    (tmp_path / "c").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"cannot be written.*cache_latents to 'memory'"):
        LatentCache(Vae(), encoder="vae", folder=tmp_path / "c").get(item, BUCKET)


def test_latents_that_are_not_finite_are_never_kept(item, tmp_path):
    cache = LatentCache(Vae(factor=float("nan")), encoder="vae", folder=tmp_path / "c")
    for _ in range(2):
        with pytest.raises(TrainingError, match=r"x\.bmp.*NaN.*--vae"):
            cache.get(item, BUCKET)
    assert not list((tmp_path / "c").rglob("*.safetensors"))


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("caption", ["a cat", "", "שלום \u202e <x>\n", "word " * 300])
def test_captions_are_encoded_once(tmp_path, caption, pooled):
    calls = []

    def encode(text: str) -> TextConditioning:
        calls.append(text)
        hidden = torch.full((1, 77, 4), float(len(text)), dtype=torch.bfloat16)
        return TextConditioning(hidden, hidden[:, 0] if pooled else None)

    def cache(encoder: str = "te") -> TextCache:
        return TextCache(encode, encoder=encoder, folder=tmp_path)

    first = cache()
    one, two, disk = first.get(caption), first.get(caption), cache().get(caption)
    assert calls == [caption]
    for other in (two, disk):
        assert torch.equal(one.hidden, other.hidden) and other.hidden.dtype == torch.bfloat16
        assert (one.pooled is None) == (other.pooled is None) == (not pooled)
    cache("other").get(caption)
    cache().get(caption + "!")
    assert calls == [caption, caption, caption + "!"]


def test_text_that_is_not_finite_is_refused():
    cache = TextCache(lambda _: TextConditioning(torch.full((1, 2, 3), torch.inf), None), encoder="te")
    with pytest.raises(TrainingError, match="'a cat'"):
        cache.get("a cat")
