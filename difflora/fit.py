"""Whether an adapter fits a loaded model, module by module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from difflora.adapter import Adapter
from difflora.errors import FitError, listing

if TYPE_CHECKING:
    from difflora.families.model import Model


@dataclass(frozen=True, slots=True)
class FitReport:
    """Which modules of an adapter a model can take.

    `matched` fit; `missing` name a module that the model does not have; `misshapen` maps the others to the
    reason.
    """

    adapter: str
    model: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    misshapen: Mapping[str, str]

    @property
    def ok(self) -> bool:
        """Whether every module fits, and there is at least one."""
        return bool(self.matched) and not self.missing and not self.misshapen

    def require(self) -> None:
        """Raises FitError with everything that does not fit; returns if all does."""
        if self.ok:
            return
        wrong = [f"{path}: {reason}" for path, reason in self.misshapen.items()]
        wrong += [f"{path}: the model has no such module" for path in self.missing]
        total = len(self.matched) + len(wrong)
        raise FitError(
            f"adapter {self.adapter!r} does not fit {self.model}: {len(wrong)} of {total} modules.\n"
            f"{listing(wrong) if wrong else '  it changes no module at all'}\n"
            "Nothing was applied. Use an adapter made for this base, or load the base it was made for "
            "(`difflora show FILE` names it)."
        )


def fits(adapter: Adapter, model: Model) -> FitReport:
    """Which modules of `adapter` fit `model`; raises nothing. `report.require()` turns a misfit into an
    error."""
    shapes = model.shapes()
    matched, missing, misshapen = [], [], {}
    for path, kinds in sorted(adapter.modules.items()):
        if path not in shapes:
            missing.append(path)
            continue
        reasons = [reason for kind in kinds if (reason := kind.problem(shapes[path]))]
        if reasons:
            misshapen[path] = "; ".join(reasons)
        else:
            matched.append(path)
    name = f"{model.facts.name} ({model.facts.variant})"
    return FitReport(adapter.meta.name, name, tuple(matched), tuple(missing), misshapen)
