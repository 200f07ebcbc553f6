"""The examples of a run as tensors: latents and text conditions, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from difflora.data.buckets import Bucket, Buckets, crop_origin
from difflora.data.cache import LatentCache, Moments, TextCache
from difflora.data.captions import caption_for, with_trigger, without_trigger
from difflora.data.dataset import Dataset
from difflora.data.plan import Batch, Sample, batches_per_epoch, epoch_batches, flipped
from difflora.draws import normal, uniform
from difflora.encode import TextConditioning, encode, encode_tokens, token_chunks
from difflora.families.model import Model, digest
from difflora.prompts import Segment
from difflora.training.config import TrainConfig


@dataclass(frozen=True, slots=True)
class Inputs:
    """Rows of one global batch.

    `latents` (B, 4, h, w) float32 on the CPU, scaled as the UNet takes them; `text` on the device; `time_ids`
    (B, 6) float32, SDXL's sizes and crops: original height and width, crop top and left, height and width.
    `preserved` are the rows whose target is what the base predicts, `captions` what every row is told.
    """

    latents: Tensor
    text: TextConditioning
    time_ids: Tensor
    captions: Sequence[str]
    preserved: Sequence[int]


class Examples:
    """Every image and caption of a run. Batches are numbered through all epochs: number → rows is a pure
    function."""

    def __init__(
        self, config: TrainConfig, dataset: Dataset, *, buckets: Buckets, model: Model, processes: int
    ) -> None:
        self.config, self.dataset, self.buckets, self.model = config, dataset, buckets, model
        self.global_batch = config.batch_size * processes
        self.batches_per_epoch = batches_per_epoch(buckets, dataset.repeats, batch_size=self.global_batch)
        self._chunks = _chunks(config, dataset, model)
        self._epoch: tuple[int, tuple[Batch, ...]] = (-1, ())
        folder = config.cache_folder or config.output / "cache"
        self._folder = folder if config.cache_latents == "disk" else None
        self._latents = self._latent_cache()
        # Tags in a new order for every sample are not worth keeping, and may need another number of chunks.
        is_fixed = not (config.train_text_encoder or config.shuffle_tags)
        self._texts = self._text_cache() if is_fixed else None

    def size(self, number: int) -> int:
        """How many rows global batch `number` has."""
        return len(self._batch(number).items)

    def load(self, number: int, rows: range) -> Inputs:
        """The given rows of global batch `number`."""
        batch, epoch = self._batch(number), number // self.batches_per_epoch
        samples = [batch.items[row] for row in rows]
        latents = [
            self._latent(sample, epoch, seed_key=(number, row))
            for sample, row in zip(samples, rows, strict=True)
        ]
        time_ids = [_time_ids(self.dataset.items[sample.item_index].size, batch.bucket) for sample in samples]
        captions = [self._caption(sample, epoch) for sample in samples]
        preserved = [
            place for place, row in enumerate(rows) if self._is_preserved(number, row, captions[place])
        ]
        for place in preserved:
            captions[place] = _untriggered(captions[place], self.config)
        return Inputs(
            torch.stack(latents),
            self.condition(captions),
            torch.tensor(time_ids, dtype=torch.float32),
            captions,
            preserved,
        )

    def prepare(self) -> None:
        """Encodes every image and, if the text encoders are frozen, every caption, before the first step."""
        if self.latents_are_cached:
            for item, bucket in zip(self.dataset.items, self.buckets.sizes, strict=True):
                for flip in (False, True) if self.config.flip else (False,):
                    self._latents.get(item, bucket, flip=flip)
        if self._texts is not None:
            for caption in _captions(self.config, self.dataset):
                self._texts.get(caption)

    @property
    def latents_are_cached(self) -> bool:
        """Whether the VAE is not needed for training any more."""
        return self.config.cache_latents != "off"

    @property
    def texts_are_cached(self) -> bool:
        """Whether the text encoders are not needed for training any more."""
        return self._texts is not None

    def _batch(self, number: int) -> Batch:
        epoch, place = divmod(number, self.batches_per_epoch)
        if self._epoch[0] != epoch:
            plan = epoch_batches(
                self.buckets,
                self.dataset.repeats,
                seed=self.config.seed,
                epoch=epoch,
                batch_size=self.global_batch,
            )
            self._epoch = (epoch, plan)
        return self._epoch[1][place]

    def _latent(self, sample: Sample, epoch: int, *, seed_key: tuple[int, int]) -> Tensor:
        """A draw from the VAE's posterior for one sample."""
        flip = self.config.flip and flipped(sample, seed=self.config.seed, epoch=epoch)
        item, bucket = self.dataset.items[sample.item_index], self.buckets.sizes[sample.item_index]
        read = self._latents.fresh if self.config.cache_latents == "off" else self._latents.get
        moments = read(item, bucket, flip=flip)
        return moments.mean + moments.std * normal(
            tuple(moments.mean.shape), self.config.seed, "posterior", *seed_key
        )

    def _caption(self, sample: Sample, epoch: int) -> str:
        item = self.dataset.items[sample.item_index]
        return caption_for(item, self.config, seed=self.config.seed, epoch=epoch, sample=sample)

    def _is_preserved(self, number: int, row: int, caption: str) -> bool:
        """A share of the rows, and every row whose caption was dropped, for it has no trigger either."""
        share = self.config.preservation
        return share > 0 and (not caption or uniform(self.config.seed, "preservation", number, row) < share)

    def condition(self, captions: Sequence[str]) -> TextConditioning:
        """The text conditions of captions, by the text encoders as they are now where those are trained."""
        if self._texts is None:
            tokens = token_chunks(
                self.model, [[Segment(caption)] for caption in captions], chunks=self._chunks
            )
            return encode_tokens(self.model, tokens, clip_skip=self.config.clip_skip)
        rows = [self._texts.get(caption) for caption in captions]
        pooled = [row.pooled for row in rows if row.pooled is not None]
        hidden = torch.cat([row.hidden for row in rows]).to(self.model.device)
        return TextConditioning(hidden, torch.cat(pooled).to(self.model.device) if pooled else None)

    def _latent_cache(self) -> LatentCache:
        def moments(pixels: Tensor) -> Moments:
            return Moments(*self.model.encode_images(pixels))

        return LatentCache(moments, encoder=self._encoder([self.model.pipeline.vae]), folder=self._folder)

    def _text_cache(self) -> TextCache:
        def condition(caption: str) -> TextConditioning:
            return encode(
                self.model, [[Segment(caption)]], clip_skip=self.config.clip_skip, chunks=self._chunks
            )

        parts = [self.model.component(part.name) for part in self.model.family.components if part.is_text]
        name = f"{self._encoder(parts)} skip {self.config.clip_skip} chunks {self._chunks}"
        return TextCache(condition, encoder=name, folder=self._folder)

    def _encoder(self, parts: Iterable[nn.Module]) -> str:
        """What names an encoder in the keys of a cache: its weights, dtype and device."""
        device = self.model.device.type
        return " ".join(f"{digest(part)} {next(part.parameters()).dtype} {device}" for part in parts)


def _captions(config: TrainConfig, dataset: Dataset) -> set[str]:
    """All that a sample can be told, but for the order of its tags."""
    captions = {"", *(with_trigger(item.caption, config.trigger) for item in dataset.items)}
    return captions | {_untriggered(caption, config) for caption in captions if config.preservation}


def _untriggered(caption: str, config: TrainConfig) -> str:
    return without_trigger(caption, config.trigger, config.preservation_class)


def _chunks(config: TrainConfig, dataset: Dataset, model: Model) -> int:
    """The chunks that the longest caption needs; every caption gets as many, so that any can share a
    batch."""
    return token_chunks(model, [[Segment(caption)] for caption in _captions(config, dataset)]).chunks


def _time_ids(size: tuple[int, int], bucket: Bucket) -> tuple[float, ...]:
    """SDXL's micro-conditioning of one image of `size` (width, height) cut to `bucket` (width, height).

    Source: Podell et al. 2023, §2.2.
    """
    left, top = crop_origin(size, bucket)
    return (size[1], size[0], top, left, bucket[1], bucket[0])
