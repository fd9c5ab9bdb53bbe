"""Matrix products on CPUs that cost less by not multiplying: MADDNESS for JAX.

    op = jax_maddness.fit(x_train, w, bias=b, num_codebooks=32)
    y = jax.jit(jax_maddness.amm)(x, op)

Here `y` approximates `x @ w + b` by look-ups in 8-bit tables (Blalock & Guttag 2021, "Multiplying Matrices Without
Multiplying"). With Flax, rules name the layers of a trained model that are replaced:

    fast = jax_maddness.replace(model, [Rule("encoder/.*", num_codebooks=64)], batches)

`build_index` and `search` find the vectors nearest to a query by the same look-ups.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from jax_maddness.core.aggregate import aggregate
from jax_maddness.core.amm import amm
from jax_maddness.core.encode import encode
from jax_maddness.core.export import disabled_export_checks
from jax_maddness.core.feature_order import fold_feature_order
from jax_maddness.core.ffi import active_tier, supported_tiers
from jax_maddness.core.memory import retain_freed_memory
from jax_maddness.core.pytrees import register_with_flax as _register_with_flax
from jax_maddness.core.serialize import load, save
from jax_maddness.core.terms.exact_term import ExactTerm
from jax_maddness.core.terms.factors import Factors
from jax_maddness.core.terms.int8_product import Int8Product, Int8ProductByRow
from jax_maddness.core.types import (
    LookupTables,
    MaddnessOp,
    ObliqueTrees,
    SplitTrees,
    with_small_batch_tables,
)
from jax_maddness.learn.budget import BudgetReport, fit_budget
from jax_maddness.learn.config import FitConfig
from jax_maddness.learn.costs import CostModel, measure_costs
from jax_maddness.learn.evaluate import FitReport, evaluate
from jax_maddness.learn.fit import fit
from jax_maddness.retrieval.build import build_index
from jax_maddness.retrieval.capacity import with_capacity
from jax_maddness.retrieval.change import add_vectors, remove_vectors
from jax_maddness.retrieval.files import load_index, save_index
from jax_maddness.retrieval.index import VectorIndex
from jax_maddness.retrieval.log_sum import LogSum
from jax_maddness.retrieval.max_over_positions import max_over_positions
from jax_maddness.retrieval.measure_recall import measure_recall
from jax_maddness.retrieval.outlier_rows import OutlierRows, amm_with_exact_rows, fit_outlier_rows
from jax_maddness.retrieval.sample import sample
from jax_maddness.retrieval.search import search
from jax_maddness.retrieval.search_within import search_within
from jax_maddness.retrieval.sharding import shard_index
from jax_maddness.retrieval.top_k import top_k

if TYPE_CHECKING:
    from jax_maddness import decoding as decoding
    from jax_maddness import nn as nn
    from jax_maddness import testing as testing
    from jax_maddness.nn import Captured as Captured
    from jax_maddness.nn import Plan as Plan
    from jax_maddness.nn import Rule as Rule
    from jax_maddness.nn import capture as capture
    from jax_maddness.nn import finetune as finetune
    from jax_maddness.nn import fuse as fuse
    from jax_maddness.nn import load_model as load_model
    from jax_maddness.nn import plan as plan
    from jax_maddness.nn import prune_unused_outputs as prune_unused_outputs
    from jax_maddness.nn import replace as replace
    from jax_maddness.nn import save_model as save_model

__version__ = "0.1.0"

__all__ = [
    "BudgetReport",
    "CostModel",
    "ExactTerm",
    "Factors",
    "FitConfig",
    "FitReport",
    "Int8Product",
    "Int8ProductByRow",
    "LogSum",
    "LookupTables",
    "MaddnessOp",
    "ObliqueTrees",
    "OutlierRows",
    "SplitTrees",
    "VectorIndex",
    "active_tier",
    "add_vectors",
    "aggregate",
    "amm",
    "amm_with_exact_rows",
    "build_index",
    "disabled_export_checks",
    "encode",
    "evaluate",
    "fit",
    "fit_budget",
    "fit_outlier_rows",
    "fold_feature_order",
    "load",
    "load_index",
    "max_over_positions",
    "measure_costs",
    "measure_recall",
    "remove_vectors",
    "retain_freed_memory",
    "sample",
    "save",
    "save_index",
    "search",
    "search_within",
    "shard_index",
    "supported_tiers",
    "top_k",
    "with_capacity",
    "with_small_batch_tables",
]

_WITH_FLAX = (
    "Captured",
    "Plan",
    "Rule",
    "capture",
    "finetune",
    "fuse",
    "load_model",
    "plan",
    "prune_unused_outputs",
    "replace",
    "save_model",
)
"""Names of `jax_maddness.nn`, which needs Flax and is imported when one of them is first used."""
_SUBMODULES = ("decoding", "nn", "testing")
if importlib.util.find_spec("flax") is not None:  # without Flax, `from jax_maddness import *` must not fail
    __all__ += _WITH_FLAX
_register_with_flax()


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBMODULES, "__version__"})


def __getattr__(name: str) -> Any:
    if name not in _WITH_FLAX and name not in _SUBMODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        if name in _SUBMODULES:
            return importlib.import_module(f"jax_maddness.{name}")
        return getattr(importlib.import_module("jax_maddness.nn"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "flax":
            raise
        raise ModuleNotFoundError(
            f"`jax_maddness.{name}` needs Flax: pip install 'jax_maddness[flax]'", name=error.name
        ) from error
