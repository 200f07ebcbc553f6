"""Whether an adapter fits a loaded model, module by module and word by word."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from difflora.adapter import Adapter
from difflora.errors import FitError, NeedsBase, listing
from difflora.kinds import Kind
from difflora.vocabulary import word_problem

if TYPE_CHECKING:
    from difflora.families.model import BaseFacts, Model


@dataclass(frozen=True, slots=True)
class FitReport:
    """Which modules and words of an adapter a model can take.

    `matched` fit; `missing` name a module that the model does not have; `misshapen` maps the others to the
    reason. `words` fit as well, `misfit_words` maps those that do not to the reason.
    """

    adapter: str
    model: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    misshapen: Mapping[str, str]
    words: tuple[str, ...] = ()
    misfit_words: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every module and word fits, and there is at least one."""
        wrong = (self.missing, self.misshapen, self.misfit_words)
        return bool(self.matched or self.words) and not any(wrong)

    def require(self) -> None:
        """Raises FitError with everything that does not fit; returns if all does."""
        if self.ok:
            return
        wrong = [f"{path}: {reason}" for path, reason in self.misshapen.items()]
        wrong += [f"{path}: the model has no such module" for path in self.missing]
        wrong += [f"the word {word!r} {reason}" for word, reason in self.misfit_words.items()]
        total = len(self.matched) + len(self.words) + len(wrong)
        parts = "modules and words" if self.words or self.misfit_words else "modules"
        raise FitError(
            f"adapter {self.adapter!r} does not fit {self.model}: {len(wrong)} of {total} {parts}.\n"
            f"{listing(wrong) if wrong else '  it changes no module at all'}\n"
            "Nothing was applied. Use an adapter made for this base, or load the base it was made for "
            "(`difflora show FILE` names it)."
        )


def fits(adapter: Adapter, model: Model) -> FitReport:
    """Which modules and words of `adapter` fit `model`; raises nothing. `report.require()` turns a misfit
    into an error."""
    modules = modules_fit(
        adapter,
        model.facts,
        model.shapes(),
        has_bias=lambda path: model.module(path)._parameters.get("bias") is not None,
    )
    reasons = {word: word_problem(vectors, model) for word, vectors in sorted(adapter.tokens.items())}
    return replace(
        modules,
        words=tuple(word for word, reason in reasons.items() if reason is None),
        misfit_words={word: reason for word, reason in reasons.items() if reason is not None},
    )


def modules_fit(
    adapter: Adapter,
    facts: BaseFacts,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    has_bias: Callable[[str], bool],
) -> FitReport:
    """Which modules of `adapter` fit a base, loaded or not: `shapes` are those of its weights by path, and
    `has_bias` tells of each of these whether the layer has a bias. Words are not looked at."""
    matched, missing, misshapen = [], [], {}
    for path, kinds in sorted(adapter.modules.items()):
        if path not in shapes:
            missing.append(path)
            continue
        with_bias = has_bias(path)
        reasons = [reason for kind in kinds if (reason := _reason(kind, shapes[path], has_bias=with_bias))]
        if reasons:
            misshapen[path] = "; ".join(reasons)
        else:
            matched.append(path)
    where = f"{facts.name} ({facts.variant})"
    return FitReport(adapter.meta.name, where, tuple(matched), tuple(missing), misshapen)


def _reason(kind: Kind, shape: tuple[int, ...], *, has_bias: bool) -> str | None:
    """Why `kind` cannot change a layer with a weight of `shape`, with or without a bias; None if it can."""
    if (reason := kind.problem(shape)) or has_bias:
        return reason
    try:
        changes_bias = kind.bias_delta(None) is not None
    except NeedsBase:
        changes_bias = True
    return f"a {kind.name} changes the bias, but the layer has none" if changes_bias else None
