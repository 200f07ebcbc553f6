"""What `difflora show` says of an adapter file."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping
from typing import Any

from difflora.adapter import Adapter, identity
from difflora.errors import listing, span
from difflora.families import family as family_named
from difflora.formats import FileReport, hashes, read

# Facts of the training that are worth a line, under their names in files.
_TRAINING = {
    "ss_steps": "steps",
    "ss_learning_rate": "learning rate",
    "ss_unet_lr": "UNet learning rate",
    "ss_text_encoder_lr": "text learning rate",
    "ss_num_train_images": "images",
    "ss_seed": "seed",
    "ss_optimizer": "optimizer",
}
MANY = 12

TEXT_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}
_CONDITIONED = (".attn2.to_k", ".attn2.to_v")


def adapter_lines(report: FileReport, *, with_metadata: bool) -> list[str]:
    """What the file changes, its identity, and everything in it that cannot be used."""
    parts = Counter(path.split(".", 1)[0] for path in report.matched)
    title = family_named(report.family).title if report.family else "an unknown family"
    facts = {
        "format": report.format,
        "family": f"{report.family} ({title})",
        "trained on": report.metadata.get("ss_sd_model_name", ""),
        "modules": f"{len(report.matched)} ({_counts(parts)})" if parts else "",
        "words": ", ".join(report.words),
        "kinds": _counts(report.kind_counts),
        "rank": span(report.ranks),
        "stored as": ", ".join(report.dtypes),
        "trigger": report.trigger,
        "training": _training(report.metadata),
        **_hashes(report),
    }
    lines = [f"{report.path.name}: adapter {report.name!r}, {report.size / 2**20:.1f} MiB"]
    lines += [f"  {name:12}{value}" for name, value in facts.items() if value]
    if report.problem:
        lines.append(f"cannot be read: {report.problem}")
    if report.unmatched:
        wrong = [f"{name}: {reason}" for name, reason in report.unmatched.items()]
        lines.append(f"cannot be used, {len(wrong)} parts do not match:\n{listing(wrong, MANY)}")
    if with_metadata:
        lines += ["metadata:", *(f"  {name} = {value}" for name, value in sorted(report.metadata.items()))]
    return lines


def _counts(found: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in found.items())


def adapter_document(report: FileReport, *, base: str | None) -> dict[str, Any]:
    """All of it as plain values; with a base the norms of every kind."""
    found: dict[str, Any] = {
        "path": str(report.path),
        "size": report.size,
        "format": report.format,
        "family": report.family,
        "name": report.name,
        "trigger": report.trigger,
        "modules": {path: list(names) for path, names in report.kinds.items()},
        "ranks": list(report.ranks),
        "dtypes": list(report.dtypes),
        "words": list(report.words),
        "unmatched": dict(report.unmatched),
        "problem": report.problem,
        "metadata": dict(report.metadata),
    }
    if not report.ok:
        return found
    from difflora.algebra import profile
    from difflora.commands.results import base_of

    adapter = read(report.path)
    model = base_of(base)
    profiled = profile(adapter, base=model)
    fit = None
    if model is not None:
        from difflora.fit import fits

        fit = fits(adapter, model).ok
    return found | {
        **_strength(adapter),
        "fits": fit,
        "norm": profiled.norm,
        "norms_by_block": profiled.norms_by_block,
        "effective_ranks": {path: module.effective_rank for path, module in profiled.modules.items()},
        "data_hash": adapter.data_hash,
        "autov3": adapter.meta.file_hash[:12],
        "sha256": "" if report.path.is_dir() else hashes(report.path).sha256,
    }


def profile_lines(adapter: Adapter, base: str | None) -> list[str]:
    """‖ΔW‖ by block, and how many terms hold most of it. Raises FitError if it does not fit `base`."""
    from difflora.algebra import profile
    from difflora.commands.results import base_of

    lines = [f"  {name:12}{value}" for name, value in _strength(adapter).items()]
    found = profile(adapter, base=base_of(base))
    if not found.modules and not found.unknown:
        return lines
    lines += [f"‖ΔW‖ {found.norm:.4g} over {len(found.modules)} modules; by block:"]
    blocks = [f"{block} {norm:.3g}" for block, norm in found.norms_by_block.items()]
    lines += [f"  {', '.join(blocks[start : start + 8])}" for start in range(0, len(blocks), 8)]
    if found.modules:
        ranks = [module.effective_rank for module in found.modules.values()]
        halves, most, nearly = (
            statistics.median(module.terms[place] for module in found.modules.values()) for place in range(3)
        )
        lines.append(
            f"spectrum (medians): effective rank {statistics.median(ranks):.1f}; 50 % of ‖ΔW‖² in {halves:g} "
            f"terms, 90 % in {most:g}, 99 % in {nearly:g}"
        )
    if found.unknown:
        lines.append(
            f"{len(found.unknown)} modules change by an amount that a base decides: give --base-model"
        )
    return lines


def _strength(adapter: Adapter) -> dict[str, str]:
    """alpha and scale of low-rank kinds, and which bases the shapes fit."""
    pairs = {
        (round(scale * rank, 4), round(scale, 4))
        for kinds in adapter.modules.values()
        for kind in kinds
        if (scale := getattr(kind, "scale", None)) is not None and (rank := getattr(kind, "rank", None))
    }
    shown = [f"{alpha:g} (scale {scale:g})" for alpha, scale in sorted(pairs)]
    facts = {"alpha": ", ".join(shown[:MANY])} if shown else {}
    widths = {
        factors.down.shape[1]
        for path, kinds in adapter.modules.items()
        for kind in kinds
        if path.endswith(_CONDITIONED) and (factors := kind.factors()) is not None
    }
    if len(widths) == 1:
        (width,) = widths
        bases = TEXT_WIDTHS.get(width, "a base of this family in another size")
        facts["made for"] = f"{bases}: its cross-attention reads texts {width} wide"
    return facts


def fit_lines(adapter: Adapter, base: str) -> list[str]:
    """Whether the adapter fits a base. Raises FitError naming every module that does not."""
    from difflora.families.outlines import outline
    from difflora.fit import fits

    model = outline(base)
    report = fits(adapter, model)
    report.require()
    return [f"  fits        {model.facts.name}: all {len(report.matched)} modules"]


def _training(metadata: Mapping[str, str]) -> str:
    known = [(words, metadata.get(name, "None")) for name, words in _TRAINING.items()]
    return ", ".join(f"{words} {value}" for words, value in known if value != "None")


def _hashes(report: FileReport) -> dict[str, str]:
    if report.path.is_dir():  # a PEFT folder, which may hold several files
        return {}
    found = hashes(report.path)
    own = {"known by": f"{identity(found.data_hash, report.scales)} (data hash, and scales of the metadata)"}
    return {
        "data hash": f"{found.data_hash} (AutoV3 {found.autov3})",
        "file hash": f"{found.sha256} (AutoV2 {found.autov2})",
        **(own if report.scales else {}),
    }
