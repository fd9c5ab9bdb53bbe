"""Flax models: replaces layers of a trained model by look-ups, by rules. nnx and linen alike.

    fast = jax_maddness.replace(model, [Rule(".*head", skip=True), Rule("encoder/.*", num_codebooks=64)], batches)

`plan` measures first which layers are worth it. Flax is an optional dependency: `pip install jax_maddness[flax]`.
"""

from jax_maddness.nn.capture import Captured, capture
from jax_maddness.nn.diff import Change, Diff
from jax_maddness.nn.finetune import FinetuneReport, finetune
from jax_maddness.nn.models.files import load_model, save_model
from jax_maddness.nn.plan import plan
from jax_maddness.nn.planning.report import Plan
from jax_maddness.nn.prune import PruneReport, prune_unused_outputs
from jax_maddness.nn.replace import replace
from jax_maddness.nn.rules import Rule
from jax_maddness.nn.tuning.losses import Term

__all__ = [
    "Captured",
    "Change",
    "Diff",
    "FinetuneReport",
    "Plan",
    "PruneReport",
    "Rule",
    "Term",
    "capture",
    "finetune",
    "load_model",
    "plan",
    "prune_unused_outputs",
    "replace",
    "save_model",
]
