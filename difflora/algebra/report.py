"""What an operation on adapters lost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Report:
    """What became of every module.

    error:  ‖wanted − got‖ / ‖wanted‖ of ΔW in Frobenius norm; 0.0 where only float32 rounded.
    norm:   ‖wanted‖, where it was computed: of the modules where something could be lost at least.
    ranks:  the number of rank-one terms of the modules that have a low-rank form.
    dense:  the bytes of ΔW in the modules that keep it whole, for want of a low-rank form.
    share:  ‖ΔW‖ / ‖W0‖, where the base weight was there to compare with.
    left_out: what the result does not hold, with the reason.
    """

    error: Mapping[str, float]
    norm: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    share: Mapping[str, float] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    dense: Mapping[str, int] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether every module has all that was wanted."""
        return not self.left_out and not any(self.error.values())

    @property
    def total_error(self) -> float:
        """‖wanted − got‖ / ‖wanted‖ over all modules of `norm`; 0 if there are none."""
        wanted = math.fsum(norm**2 for norm in self.norm.values())
        lost = math.fsum((self.error[path] * norm) ** 2 for path, norm in self.norm.items())
        return math.sqrt(lost / wanted) if wanted else 0.0
