"""The options that say what to learn from; part of the training configuration."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator


def _at_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: no home folder is known for its ~; write the path in full") from error


UserPath = Annotated[Path, AfterValidator(_at_home)]
"""A path as users write it: a `~` in front is their home folder."""


class DataOptions(BaseModel):
    """The folder, its captions, sizes and batches. Unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: UserPath = Field(
        description="Folder to learn from: images with a caption file each, or folders named 10_name inside "
        "it (10 repeats), or one such folder."
    )
    caption_extension: str | None = Field(
        default=None,
        description="Ending of the caption files; by default .txt or .caption, whichever is there.",
    )
    trigger: str = Field(
        default="",
        description="Word that calls the adapter; put in front of every caption that does not contain it.",
    )
    caption: str = Field(
        default="", description="One caption for every image; caption files are then not read at all."
    )
    repeats: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="How often each image is seen in one epoch; multiplies the number of a 10_name folder.",
    )
    resolution: int | None = Field(
        default=None,
        ge=32,
        le=4096,
        multiple_of=8,
        description="Edge of the training square in pixels; by default the base's own.",
    )
    buckets: bool = Field(
        default=True,
        description="Keep each image near its own aspect ratio; if off, every image is cropped to a square.",
    )
    bucket_step: int | None = Field(
        default=None,
        ge=8,
        multiple_of=8,
        description="Bucket edges are multiples of this many pixels; by default 64 (8 below resolution 256).",
    )
    min_bucket_edge: int | None = Field(
        default=None, ge=8, description="Shortest edge of a bucket in pixels; by default half the resolution."
    )
    max_bucket_edge: int | None = Field(
        default=None, ge=8, description="Longest edge of a bucket in pixels; by default twice the resolution."
    )
    upscale: bool = Field(
        default=True,
        description="Enlarge images smaller than their bucket; if off, they get a smaller one of their own.",
    )
    flip: bool = Field(
        default=False, description="Mirror half of the images, drawn anew each epoch; not for text or faces."
    )
    caption_dropout: float = Field(
        default=0.0, ge=0.0, le=1.0, description="Share of samples trained with an empty caption."
    )
    shuffle_tags: bool = Field(
        default=False,
        description="Put the comma-separated tags of a caption in a new order for every sample.",
    )
    keep_tokens: int = Field(
        default=0, ge=0, description="How many leading tags stay in front when the tags are shuffled."
    )
    cache_latents: Literal["memory", "disk", "off"] = Field(
        default="memory",
        description="Encode each image once and keep the result in memory, or on disk for the next run too.",
    )
    cache_folder: UserPath | None = Field(
        default=None, description="Where the disk cache lies; by default the folder cache beside the output."
    )
    batch_size: int = Field(default=1, ge=1, description="Images a step in each process.")
    skip_bad: bool = Field(
        default=False,
        description="Leave out images that cannot be used, and say which, instead of stopping at once.",
    )

    @field_validator("caption_extension")
    @classmethod
    def _dotted(cls, value: str | None) -> str | None:
        return value if value is None or value.startswith(".") else f".{value}"

    @field_validator("trigger", "caption")
    @classmethod
    def _one_line(cls, value: str) -> str:
        return " ".join(value.split())

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = []
        if not self.buckets and not self.upscale:
            problems.append("upscale=false needs buckets: a square of one size has to enlarge small images")
        if self.keep_tokens and not self.shuffle_tags:
            problems.append("keep_tokens has no effect without shuffle_tags")
        if self.cache_folder is not None and self.cache_latents != "disk":
            problems.append(f"cache_folder needs cache_latents='disk', got '{self.cache_latents}'")
        if problems:
            raise ValueError("; ".join(problems))
        return self
