"""All of nn under JAX's stricter settings, with the results that it has without them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_maddness import (
    FitConfig,
    Rule,
    capture,
    finetune,
    load_model,
    plan,
    prune_unused_outputs,
    replace,
    save_model,
)
from jax_maddness.nn.planning import measure

CODES = {"num_codebooks": 4, "config": FitConfig("paper")}
RULES = {
    "rescored": [Rule("conv", exact_rows=0.1, num_candidates=2, **CODES), Rule("mid|head", **CODES)],
    "products": [Rule("conv", product="int8"), Rule("mid", product="low rank", rank=3)],
}


class Model(nnx.Module):
    """A convolution with a maximum over its positions, and two layers."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(4, 8, (3,), rngs=rngs)
        self.mid, self.head = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.mid(nnx.relu(self.conv(x)).max(1))))


def everything(x, path):
    """Outputs of the models that all functions return, by name."""
    model, batches = Model(), [jnp.asarray(x[:32]), jnp.asarray(x[32:])]
    captured = capture(model, batches, Rule(".*"))
    made = {name: replace(model, rules, batches, captured=captured) for name, rules in RULES.items()}
    made["prefix"] = replace(model, Rule("mid", **CODES), batches, calibrate="prefix")
    made["tuned"] = finetune(made["rescored"], teacher=model, batches=batches * 2, steps=2, held_out=1, look_every=1)
    made["pruned"] = prune_unused_outputs(replace(model, Rule("head", **CODES), batches), batches[0])
    made["planned"] = replace(model, plan(model, batches * 2, Rule("mid", **CODES), max_drop=np.inf))
    save_model(path, made["rescored"])
    made["loaded"] = load_model(path, Model())
    return {name: np.asarray(one(batches[0])) for name, one in made.items()}


@pytest.mark.slow
def test_models_under_all_flags_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(
        measure, "interleaved", lambda calls, seconds=0: [(1.0 / n, 0.0) for n in range(1, 1 + len(calls))]
    )
    x = np.random.default_rng(0).standard_normal((64, 9, 4)).astype(np.float32)
    usual = everything(x, tmp_path / "model")
    with (
        jax.numpy_rank_promotion("raise"),
        jax.enable_x64(True),
        jax.debug_nans(True),
        jax.numpy_dtype_promotion("strict"),
    ):
        strict = everything(x, tmp_path / "model")
    for name, y in usual.items():
        assert strict[name].dtype == y.dtype, name
        np.testing.assert_allclose(strict[name], y, rtol=1e-4, atol=1e-4, err_msg=name)
