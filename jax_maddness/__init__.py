"""Matrix products on CPUs that cost less by not multiplying: MADDNESS for JAX.

    op = jax_maddness.fit(x_train, w, bias=b, num_codebooks=32)
    y = jax.jit(jax_maddness.amm)(x, op)

Then `y` approximates `x @ w + b`, by look-ups.
"""

from jax_maddness.core.aggregate import aggregate
from jax_maddness.core.amm import amm
from jax_maddness.core.encode import encode
from jax_maddness.core.ffi import active_tier, supported_tiers
from jax_maddness.core.fold import fold_features
from jax_maddness.core.memory import keep_memory
from jax_maddness.core.serialize import load, save
from jax_maddness.core.types import LookupTables, MaddnessOp, ObliqueTrees, SplitTrees, with_few_rows_layout
from jax_maddness.learn.budget import Budgeted, fit_budget
from jax_maddness.learn.evaluate import Report, evaluate
from jax_maddness.learn.fit import FitConfig, fit

__version__ = "0.1.0"

__all__ = [
    "Budgeted",
    "FitConfig",
    "LookupTables",
    "MaddnessOp",
    "ObliqueTrees",
    "Report",
    "SplitTrees",
    "active_tier",
    "aggregate",
    "amm",
    "encode",
    "evaluate",
    "fit",
    "fit_budget",
    "fold_features",
    "keep_memory",
    "load",
    "save",
    "supported_tiers",
    "with_few_rows_layout",
]
