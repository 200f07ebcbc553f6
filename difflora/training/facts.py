"""What an adapter's file says about its training, under the names that other programs read."""

import json
from collections import Counter

from difflora.adapter import AdapterMeta
from difflora.data.captions import with_trigger
from difflora.data.dataset import Dataset
from difflora.families.model import Model
from difflora.training.config import TrainConfig


def meta(config: TrainConfig, model: Model, *, dataset: Dataset, step: int, total: int) -> AdapterMeta:
    """Name, base, trigger and training facts: a pure function of the run, without times, random ids or
    paths."""
    return AdapterMeta(
        name=config.name,
        family=model.family.name,
        base=model.facts.name,
        trigger=config.trigger,
        training=_run(config, step, total) | _base(config, model) | _data(config, dataset),
    )


def _run(config: TrainConfig, step: int, total: int) -> dict[str, str]:
    text_rate = config.text_rate() if config.train_text_encoder else None
    values = {
        "ss_seed": config.seed,
        "ss_steps": step,
        "ss_max_train_steps": total,
        "ss_num_epochs": config.epochs,
        "ss_learning_rate": config.learning_rate,
        "ss_unet_lr": config.learning_rate if config.train_unet else None,
        "ss_text_encoder_lr": text_rate,
        "ss_optimizer": config.optimizer,
        "ss_lr_scheduler": config.schedule,
        "ss_lr_warmup_steps": config.warmup_steps,
        "ss_max_grad_norm": config.max_grad_norm,
        "ss_mixed_precision": config.precision,
        "ss_gradient_checkpointing": config.gradient_checkpointing,
        "ss_gradient_accumulation_steps": config.accumulation,
        "ss_min_snr_gamma": config.min_snr_gamma,
        "ss_noise_offset": config.noise_offset,
        "ss_caption_dropout_rate": config.caption_dropout,
        "ss_network_init": config.init,
        "ss_rslora": config.rslora,
    }
    return {key: str(value) for key, value in values.items()}


def _base(config: TrainConfig, model: Model) -> dict[str, str]:
    facts = model.facts
    edge = config.resolution or facts.resolution
    return {
        "ss_new_sd_model_hash": facts.sha256,
        "ss_clip_skip": str(config.clip_skip) if config.clip_skip > 1 else "None",
        "ss_zero_terminal_snr": str(facts.zero_terminal_snr),
        "ss_resolution": f"({edge}, {edge})",
        "modelspec.resolution": f"{edge}x{edge}",
        "modelspec.prediction_type": "v" if facts.prediction_type == "v_prediction" else "epsilon",
    }


def _data(config: TrainConfig, dataset: Dataset) -> dict[str, str]:
    tags: Counter[str] = Counter()
    for item in dataset.items:
        caption = with_trigger(item.caption, config.trigger)
        tags.update(tag.strip() for tag in caption.split(",") if tag.strip())
    return {
        "ss_num_train_images": str(sum(dataset.repeats)),
        "ss_batch_size_per_device": str(config.batch_size),
        "ss_enable_bucket": str(config.buckets),
        "ss_flip_aug": str(config.flip),
        "ss_shuffle_caption": str(config.shuffle_tags),
        "ss_keep_tokens": str(config.keep_tokens),
        "ss_tag_frequency": json.dumps({config.name: dict(tags.most_common())}, ensure_ascii=False),
    }
