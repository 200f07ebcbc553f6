"""Put a forward in front of a module's own, and take it off again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

Forward = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class Attached:
    """A forward put in front of a module's own, and what was there before."""

    module: nn.Module
    previous: Forward | None

    def detach(self) -> None:
        """Puts back what was there; attachments must be detached in the opposite order."""
        if self.previous is None:
            del self.module.forward
        else:
            self.module.forward = self.previous


def attach(module: nn.Module, forward: Forward) -> Attached:
    """Calls `forward` wherever `module` is called. The module tree, parameters and state-dict names do not
    change.

    An instance attribute shadows the class's method: nn.Module does not register plain callables, and
    `torch.compile` reads the attribute when it traces (hooks added after a first compiled call are ignored
    without a word).
    """
    previous = module.__dict__.get("forward")
    module.forward = forward
    return Attached(module, previous)


@contextmanager
def detached(attachments: Sequence[Attached]) -> Iterator[None]:
    """The modules without these attachments, the last of each, for the length of a `with` block."""
    forwards = [attachment.module.forward for attachment in attachments]
    for attachment in attachments:
        attachment.detach()
    try:
        yield
    finally:
        for attachment, forward in zip(attachments, forwards, strict=True):
            attachment.module.forward = forward
