"""The difference of two bases as an adapter."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from difflora.adapter import Adapter, AdapterMeta
from difflora.algebra.checkpoints import Checkpoint, Loaded, Parameters, parameters_of
from difflora.algebra.report import Report
from difflora.algebra.resizing import truncated
from difflora.algebra.spectrum import Target, dense_spectrum
from difflora.errors import FitError, listing
from difflora.families.model import BaseFacts, Model
from difflora.kinds import Bias, Full, Kind, Norm
from difflora.threads import one_thread


def extract(
    before: Model | str | Path,
    after: Model | str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    vectors: bool = False,
) -> tuple[Adapter, Report]:
    """The LoRA that turns `before` into `after`, as nearly as its rank allows, and what it leaves out.

    Both are models in memory, diffusers folders, single files, or ids on the Hub, in any mixture; of files
    one weight is in memory at a time. Exactly one of `rank`, `energy` and `error` sets the number of terms;
    see `resize`. Modules that are alike in both are left out.

    `vectors` keeps the differences of biases, norms and token embeddings too, exactly, as Bias, Norm and
    Full; without it Report.left_out names them. Report.error[path] = ‖ΔW − ΔW'‖ / ‖ΔW‖.

    Raises FitError if the two are not of one architecture, or differ in nothing that is kept; ConfigError
    unless exactly one target is given.
    """
    target = Target(rank=rank, energy=energy, error=error)
    old, new = parameters_of(before), parameters_of(after)
    _require_alike(old, new)
    found = _Extracted(target, vectors)
    with one_thread(), torch.no_grad():
        for path in sorted(old.shapes()):
            found.add(path, old, new)
    facts, result = _facts(old), _facts(new)
    if not found.modules:
        raise FitError(_nothing(facts, result, modules=len(old.shapes()), left_out=len(found.left_out)))
    meta = AdapterMeta(name=f"{result.name}-{facts.name}", family=facts.family, base=facts.name)
    report = Report(found.error, found.norm, found.ranks, found.share, found.left_out)
    return Adapter(found.modules, meta), report


@dataclass(eq=False)
class _Extracted:
    target: Target
    vectors: bool
    modules: dict[str, tuple[Kind, ...]] = field(default_factory=dict)
    error: dict[str, float] = field(default_factory=dict)
    norm: dict[str, float] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    share: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, path: str, old: Parameters, new: Parameters) -> None:
        change, base = _difference(path, "weight", old, new)
        shift, _ = _difference(path, "bias", old, new)
        if change is not None:
            norm, whole = float(change.norm()), float(base.norm())
            self.norm[path], self.share[path] = norm, norm / whole if whole else 0.0
            self.error[path] = 0.0
        kinds: list[Kind] = []
        if change is not None and change.ndim > 1 and not path.endswith("_embedding"):
            spectrum = dense_spectrum(change.flatten(1))
            rank = self.target.of(spectrum.values)
            kinds.append(truncated(spectrum, rank, tuple(change.shape)))
            self.error[path], self.ranks[path] = spectrum.error(rank), rank
            change = None
        if self.vectors:
            kinds += _exact(change, shift)
        elif change is not None or shift is not None:
            what = " and ".join(n for n, t in (("weight", change), ("bias", shift)) if t is not None)
            self.left_out[path] = f"its {what}: no matrix that a LoRA can change"
            if change is not None:
                self.error[path] = 1.0
        if kinds:
            self.modules[path] = tuple(kinds)


def _exact(change: Tensor | None, shift: Tensor | None) -> list[Kind]:
    """Differences that are kept as they are."""
    if change is not None and change.ndim == 1:
        return [Norm(change, shift)]
    if change is not None:
        return [Full(change, shift)]
    return [] if shift is None else [Bias(shift)]


def _difference(path: str, leaf: str, old: Parameters, new: Parameters) -> tuple[Tensor | None, Tensor]:
    """new − old in float32, None if they are alike or not there; and old."""
    a, b = old.value(path, leaf), new.value(path, leaf)
    if a is None or b is None:
        return None, torch.zeros(0)
    a, b = a.float(), b.to(a.device).float()
    return (None if torch.equal(a, b) else b - a), a


def _facts(parameters: Parameters) -> BaseFacts:
    assert isinstance(parameters, Loaded | Checkpoint)
    return parameters.model.facts if isinstance(parameters, Loaded) else parameters.facts


def _nothing(before: BaseFacts, after: BaseFacts, *, modules: int, left_out: int) -> str:
    """Why there is no adapter that turns the one into the other."""
    if left_out:
        return (
            f"{before.name} and {after.name} differ in the norms, biases or embeddings of {left_out} modules "
            "alone, which no LoRA changes. Take them along: vectors=True in Python, --vectors on the command "
            "line."
        )
    return (
        f"{before.name} and {after.name} hold the same numbers in all {modules} modules, so there is nothing "
        "to extract. Give the model before training first, and the one after it second."
    )


def _require_alike(old: Parameters, new: Parameters) -> None:
    a, b = old.shapes(), new.shapes()
    wrong = [
        f"{path} is {a.get(path, 'missing')} before and {b.get(path, 'missing')} after"
        for path in sorted(a.keys() | b.keys())
        if a.get(path) != b.get(path)
    ]
    if wrong:
        raise FitError(
            f"the two are not of one architecture: {len(wrong)} modules differ.\n{listing(wrong)}\n"
            "Only the difference of models of the same kind is an adapter."
        )
