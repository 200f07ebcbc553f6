"""What both ways to apply a stack have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from difflora.adapter import Stack, Weight

if TYPE_CHECKING:
    from difflora.families.model import Model


class Mix(ABC):
    """A stack while it is applied to a model."""

    def __init__(self, model: Model, stack: Stack) -> None:
        self.model = model
        self.stack = stack

    def set_weights(self, weights: Sequence[float | Weight]) -> None:
        """Changes the weights, given in the order of the stack, without attaching anything anew.

        Raises AdapterError if their number is not that of the adapters.
        """
        self.stack = self.stack.with_weights(weights)
        self._update()

    @abstractmethod
    def _update(self) -> None: ...
