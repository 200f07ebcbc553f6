"""Exact arithmetic on adapters: pure functions that return a result and a report of what was lost."""

from difflora.algebra.baking import bake
from difflora.algebra.blocks import BlockWeights, block_of
from difflora.algebra.comparing import Comparison, ModuleComparison, compare, subspace_overlap
from difflora.algebra.extracting import extract
from difflora.algebra.heat import heat_map
from difflora.algebra.interfering import Interference, interference
from difflora.algebra.merging import merge
from difflora.algebra.methods import METHODS
from difflora.algebra.profiling import Profile, profile
from difflora.algebra.report import Report
from difflora.algebra.resizing import resize
from difflora.algebra.scaling import negate, scale

__all__ = [
    "METHODS",
    "BlockWeights",
    "Comparison",
    "Interference",
    "ModuleComparison",
    "Profile",
    "Report",
    "bake",
    "block_of",
    "compare",
    "extract",
    "heat_map",
    "interference",
    "merge",
    "negate",
    "profile",
    "resize",
    "scale",
    "subspace_overlap",
]
