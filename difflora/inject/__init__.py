"""Attach trainable factors beside the layers of a model, and collect them back into an Adapter.

options.py   what is trained         targets.py  which layers        arena.py  flat storage of the factors
trainable.py what a trainable kind promises, and lora.py ... one file a kind; table.py lists them
lean.py      frozen layers that keep less for the backward pass       injected.py  the `with` block
"""

from difflora.inject.arena import Arena
from difflora.inject.injected import Injected, injected
from difflora.inject.options import NetworkOptions
from difflora.inject.targets import TARGETS, targets
from difflora.inject.trainable import Trainable

__all__ = ["TARGETS", "Arena", "Injected", "NetworkOptions", "Trainable", "injected", "targets"]
