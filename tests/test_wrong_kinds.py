"""Arguments of public functions and options: the wrong kind is refused by an error that names the argument."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_maddness
from jax_maddness import FitConfig, Rule
from jax_maddness.learn.costs import PARTS

WRONG = {"an object": object(), "strings": np.array(["a", "b"]), "a dict": {"a": 1}}
NOT_TESTED = {"progress"}  # any object may say yes or no there


class Net(nnx.Module):
    """Two linear layers."""

    def __init__(self):
        self.first, self.last = nnx.Linear(8, 16, rngs=nnx.Rngs(0)), nnx.Linear(16, 5, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.last(nnx.relu(self.first(x)))


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """Arguments that every public function takes."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("files")
    x, w = rng.standard_normal((300, 8)).astype(np.float32), rng.standard_normal((8, 5)).astype(np.float32)
    paper = FitConfig("paper")
    op = jax_maddness.fit(x, w, num_codebooks=2, config=paper, keep_weights=True)
    index = jax_maddness.build_index(x, 4)
    net, batches, rule = Net(), [jnp.asarray(x[:64]), jnp.asarray(x[64:128])], Rule("first", 2, config=paper)
    fast = jax_maddness.replace(net, rule, batches)
    jax_maddness.save(folder / "op", op)
    jax_maddness.save_index(folder / "index", index)
    jax_maddness.save_model(folder / "model", fast)
    rows, samples = jnp.asarray(x), {"x_train": x, "w": w}
    learning = {"batches": batches, "rules": rule}
    return {
        "add_vectors": {"index": index, "vectors": x[:3]},
        "aggregate": {"codes": jax_maddness.encode(rows, op.trees), "tables": op.tables},
        "amm": {"x": rows, "op": op},
        "amm_with_exact_rows": {"x": rows, "op": op, "rows": jax_maddness.fit_outlier_rows(x), "max_exact": 3},
        "build_index": {"database": x, "num_codebooks": 4},
        "capture": {"model": net, **learning},
        "encode": {"x": rows, "trees": op.trees},
        "evaluate": {"op": op, "x": x, "w": w},
        "finetune": {"model": fast, "teacher": net, "batches": batches, "steps": 1},
        "fit": {**samples, "num_codebooks": 2, "config": paper},
        "fit_budget": {**samples, "num_bytes": 400, "products": ["codes"]},
        "fit_outlier_rows": {"x_train": x},
        "fold_feature_order": {"op": op, "w_before": np.ones((4, 8)), "b_before": np.zeros(8)},
        "load": {"path": folder / "op"},
        "load_index": {"path": folder / "index"},
        "load_model": {"path": folder / "model", "model": net},
        "max_over_positions": {"x": rows, "op": op},
        "measure_costs": {},
        "measure_recall": {"queries": x[:4], "index": index},
        "plan": {"model": net, **learning, "max_seconds": 1.0},
        "fuse": {"model": fast},
        "prune_unused_outputs": {"model": fast, "batch": batches[0]},
        "remove_vectors": {"index": index, "ids": [3]},
        "replace": {"model": net, **learning},
        "sample": {"key": jax.random.key(0), "x": rows[:4], "op_or_index": op, "num_candidates": 2},
        "save": {"path": folder / "op", "op": op},
        "save_index": {"path": folder / "index", "index": index},
        "save_model": {"path": folder / "model", "model": fast},
        "search": {"queries": rows[:4], "index": index},
        "search_within": {"queries": rows[:4], "index": index, "min_score": 1.0},
        "shard_index": {"index": index, "mesh": jax.make_mesh((1,), ("i",)), "axis": "i"},
        "top_k": {"x": rows[:4], "op_or_index": op},
        "with_capacity": {"index": index, "capacity": 400},
        "with_small_batch_tables": {"op": op},
        "CostModel": {"machine": "a machine", **dict.fromkeys(PARTS, 0.0)},
        "FitConfig": {},
        "Rule": {"pattern": "first"},
    }


FUNCTIONS = [
    name
    for name in dir(jax_maddness)
    if inspect.isfunction(getattr(jax_maddness, name)) and inspect.signature(getattr(jax_maddness, name)).parameters
]
OPTIONS = ["CostModel", "FitConfig", "Rule"]
ARGUMENTS = [
    (name, argument)
    for name in FUNCTIONS + OPTIONS
    for argument in inspect.signature(getattr(jax_maddness, name)).parameters
    if argument not in NOT_TESTED
]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_the_error_names_the_argument(name, argument, wrong, calls):
    with pytest.raises((TypeError, ValueError), match=rf"`{argument}\b"):
        getattr(jax_maddness, name)(**{**calls[name], argument: WRONG[wrong]})
