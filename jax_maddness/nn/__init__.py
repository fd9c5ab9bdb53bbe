"""Flax models, nnx and linen alike: rules decide which layers of a trained model are replaced by look-ups.

    fast = jax_maddness.replace(model, [Rule(".*head", skip=True), Rule("encoder/.*", num_codebooks=64)], batches)

`plan` measures first which layers are worth it, `finetune` trains the tables of all layers together, and
`prune_unused_outputs` removes outputs that nothing reads. Flax is an optional dependency:
`pip install jax_maddness[flax]`.

The files are in floors. Each imports from the floors before it, and from earlier files of its own:

1. `layers/`: a layer as a matrix product, and the products that replace it. Pure JAX.
2. `models/`: one view of nnx and linen models; the only folder that knows Flax.
3. `batches`, `rules`, `units`, `replacement`: which layers are replaced together, and by what; `arguments`, `nmse` and
   `fingerprint`, which others use.
4. `planning/`, `tuning/`, `pruning/`: the parts of `plan`, `finetune` and `prune_unused_outputs`; none imports another.
5. `capture`, `calibrate`, `diff`: the steps that `plan` and `replace` have in common.
6. `plan`, `replace`, `finetune`, `prune`, `fuse`: the public functions; none imports another.
"""

from jax_maddness.core.pytrees import register_with_flax as _register_with_flax
from jax_maddness.nn.capture import Captured, capture
from jax_maddness.nn.diff import Change, Diff
from jax_maddness.nn.finetune import FinetuneReport, finetune
from jax_maddness.nn.fuse import fuse
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
    "fuse",
    "load_model",
    "plan",
    "prune_unused_outputs",
    "replace",
    "save_model",
]

_register_with_flax()
