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
from jax_maddness.core.types import (
    ExactTerm,
    LookupTables,
    MaddnessOp,
    ObliqueTrees,
    SplitTrees,
    with_few_rows_layout,
)
from jax_maddness.learn.budget import Budgeted, fit_budget
from jax_maddness.learn.evaluate import Report, evaluate
from jax_maddness.learn.fit import FitConfig, fit
from jax_maddness.retrieval.build import add_vectors, build_index, remove_vectors
from jax_maddness.retrieval.check import RowRule, amm_exact_rows, checked_max, row_rule, top_k
from jax_maddness.retrieval.files import load_index, save_index
from jax_maddness.retrieval.index import VectorIndex
from jax_maddness.retrieval.search import search
from jax_maddness.retrieval.sharding import shard_index

__version__ = "0.1.0"

__all__ = [
    "Budgeted",
    "ExactTerm",
    "FitConfig",
    "LookupTables",
    "MaddnessOp",
    "ObliqueTrees",
    "Report",
    "RowRule",
    "SplitTrees",
    "VectorIndex",
    "active_tier",
    "add_vectors",
    "aggregate",
    "amm",
    "amm_exact_rows",
    "build_index",
    "checked_max",
    "encode",
    "evaluate",
    "fit",
    "fit_budget",
    "fold_features",
    "keep_memory",
    "load",
    "load_index",
    "remove_vectors",
    "row_rule",
    "save",
    "save_index",
    "search",
    "shard_index",
    "supported_tiers",
    "top_k",
    "with_few_rows_layout",
]
