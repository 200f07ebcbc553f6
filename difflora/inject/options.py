"""What is trained, as options."""

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from difflora.inject.table import TRAINABLE
from difflora.inject.trainable import Trainable

KindName = Literal["lora", "dora", "loha", "lokr", "full"]
InitName = Literal["default", "pissa"]


class NetworkOptions(BaseModel):
    """What is trained: which layers get factors, of what kind and rank."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: KindName = Field(
        "lora",
        description="What is learned for a layer: lora (with convolutions: LoCon), dora (its length apart), "
        "loha or lokr (more ranks in the same size), full (every weight: large files, no rank or alpha).",
    )
    rank: int = Field(
        16,
        ge=1,
        le=1024,
        description="Rank of the factors: more learns finer detail, and makes larger files.",
    )
    alpha: FiniteFloat | None = Field(
        None,
        gt=0,
        description="The update is scaled by alpha / rank. Default: equal to the rank, a scale of 1.",
    )
    rslora: bool = Field(
        False, description="Scales by alpha / √rank instead, so that high ranks learn as fast as low ones."
    )
    init: InitName = Field(
        "default",
        description="Where lora starts: default at random, pissa at the base's strongest directions (learns "
        "faster; the file has twice the rank).",
    )
    lokr_factor: int | None = Field(
        None,
        ge=1,
        description="lokr: the most rows and columns of its small side; smaller ones learn more and make "
        "larger files. Default: as square as can be.",
    )
    targets: str = Field(
        "attn",
        description="Layers that get factors: attn, attn+ff, all-linear, all (with convolutions), or regular "
        "expressions over layer paths, separated by commas.",
    )
    train_unet: bool = Field(True, description="Train factors in the UNet.")
    train_text_encoder: bool = Field(False, description="Train factors in the text encoders as well.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        rows = TRAINABLE[self.kind]
        if self.init not in rows:
            able = [kind for kind, starts in TRAINABLE.items() if self.init in starts]
            raise ValueError(f"kind={self.kind!r} has no init={self.init!r}; use it with {', '.join(able)}")
        if self.rslora and not rows[self.init].has_rank:
            raise ValueError(f"rslora is a scale by rank, and kind={self.kind!r} has none: leave it out")
        if self.lokr_factor is not None and self.kind != "lokr":
            raise ValueError(f"lokr_factor belongs to kind='lokr', and kind is {self.kind!r}: leave it out")
        return self

    @property
    def trainable(self) -> type[Trainable]:
        """What trains the kind that was chosen."""
        return TRAINABLE[self.kind][self.init]

    @property
    def scale(self) -> float:
        """alpha / rank, or alpha / √rank for rsLoRA.

        Source: Kalajdzievski 2023, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA".
        """
        alpha = self.alpha if self.alpha is not None else self.rank
        return alpha / (math.sqrt(self.rank) if self.rslora else self.rank)
