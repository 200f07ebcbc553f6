"""Messages of libraries that a user cannot act on, kept quiet by name."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Beginnings of messages; everything else still shows.
_WARNINGS = (
    r"`torch_dtype` is deprecated",
    r"The configuration file of the unet has set the default `sample_size`",
    r".*`local_dir_use_symlinks`",
    r"`clean_up_tokenization_spaces`",
    r".*copying from a non-meta parameter in the checkpoint to a meta parameter",
)
_LOG_LINES = (
    "`CLIPImageProcessor` requires torchvision",  # of image encoders, which are not used
    "`SiglipImageProcessor` requires torchvision",
    "The config attributes",
    "Pipelines loaded with `dtype=torch.float16` cannot run with `cpu` device",
    "Some weights of the model checkpoint were not used",  # reported by name before loading
    "In this conversion only the non-EMA weights are extracted",
    "`torch_dtype` is deprecated",
    "Couldn't connect to the Hub",  # huggingface_hub says so itself, and that the cache is used
    "There are modules in AutoencoderKL that should be kept in float32: []",
    "There are modules in UNet2DConditionModel that should be kept in float32: []",
)
_LOGGERS = ("diffusers", "transformers")


class _ByName(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(_LOG_LINES)


@contextmanager
def quiet() -> Iterator[None]:
    """Hides the known messages for the length of a `with` block."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    # Asking for the level is what gives each library its handler.
    diffusers_logging.get_verbosity()
    transformers_logging.get_verbosity()
    handlers = [handler for name in _LOGGERS for handler in logging.getLogger(name).handlers]
    by_name = _ByName()
    for handler in handlers:
        handler.addFilter(by_name)
    try:
        with warnings.catch_warnings():
            for message in _WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(by_name)


@contextmanager
def without_bars() -> Iterator[None]:
    """Hides the progress bars of reading local files for the length of a `with` block; not for downloads."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    shown = [log for log in (diffusers_logging, transformers_logging) if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()
