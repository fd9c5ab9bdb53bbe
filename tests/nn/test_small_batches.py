"""Layers whose batches have few rows get the tables for few rows, without a word of the user's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jax_maddness import FitConfig, Rule, amm, finetune, fit, load_model, plan, replace, save_model
from jax_maddness.core.types import SMALL_BATCH
from jax_maddness.nn.models import files
from jax_maddness.nn.models.model import adapt

RULE = Rule(".*", num_codebooks=2, config=FitConfig("paper"))


class Two(nnx.Module):
    """A layer that sees every row, and one that sees their mean."""

    def __init__(self):
        self.each, self.mean = (nnx.Linear(8, 8, rngs=nnx.Rngs(seed)) for seed in (0, 1))

    def __call__(self, x):
        return self.mean(nnx.relu(self.each(x)).mean(-2, keepdims=True))


def batches(rng, rows, count=40):
    return [jnp.asarray(rng.standard_normal((rows, 8)), jnp.float32) for _ in range(count)]


def has_copy(model):
    """Whether each op has the tables for few rows, by owner."""
    return {owner: "tables_by_code" in places for owner, places in adapt(model).op_places().items()}


@pytest.mark.parametrize(("rows", "few"), [(1, True), (SMALL_BATCH, True), (SMALL_BATCH + 1, False)])
def test_the_batch_decides(rows, few, rng):
    data = batches(rng, rows)
    fast = replace(Two(), RULE, data)
    assert has_copy(fast) == {"each": few, "mean": True}
    for op, places in ((name, adapt(fast).op_places()[name]) for name in has_copy(fast)):
        arrays = adapt(fast).arrays()
        if has_copy(fast)[op]:
            np.testing.assert_array_equal(
                arrays[places["tables_by_code"]], np.moveaxis(np.asarray(arrays[places["tables_values"]]), -3, -1)
            )


def test_linen_scans_and_groups(rng):
    x = batches(rng, 1)
    module = nn.Dense(5)
    fast = replace((module, module.init(jax.random.key(0), x[0])), RULE, x)
    assert list(has_copy(fast).values()) == [True]
    conv = nnx.Conv(4, 6, (1,), feature_group_count=2, rngs=nnx.Rngs(0))
    images = [jnp.asarray(rng.standard_normal((1, 4, 4)), jnp.float32) for _ in range(40)]
    fast = replace(conv, RULE, images)
    many = np.concatenate(images, 1)  # more rows, for which the other tables are read
    np.testing.assert_allclose(fast(jnp.asarray(many)), np.concatenate([fast(x) for x in images], 1), atol=1e-5)


def test_it_is_kept_right_by_files_plans_and_training(rng, tmp_path):
    model, data = Two(), batches(rng, 2)
    fast = replace(model, RULE, data)
    save_model(tmp_path / "model", fast)
    loaded = load_model(tmp_path / "model", Two())
    tuned = finetune(fast, teacher=model, batches=data, steps=2, look_every=1)
    planned = replace(model, plan(model, data, RULE, products=["codes"], max_drop=10.0, max_seconds=60.0), data)
    for each in (loaded, tuned, planned):
        arrays = adapt(each).arrays()
        for places in adapt(each).op_places().values():
            by_code = np.moveaxis(np.asarray(arrays[places["tables_values"]]), -3, -1)
            np.testing.assert_array_equal(arrays[places["tables_by_code"]], by_code)


def test_a_copy_that_differs_is_neither_saved_nor_loaded(rng, tmp_path, monkeypatch):
    fast = replace(Two(), RULE, batches(rng, 1))
    places, arrays = adapt(fast).op_places()["each"], adapt(fast).arrays()
    wrong = {**arrays, places["tables_by_code"]: arrays[places["tables_by_code"]] ^ 1}
    wrong = adapt(fast).with_arrays(wrong).model
    with pytest.raises(ValueError, match="'each': `tables_by_code` is no copy of `tables_values`"):
        save_model(tmp_path / "model", wrong)
    with monkeypatch.context() as patched:
        patched.setattr(files, "_validate_ops", lambda model: None)
        save_model(tmp_path / "model", wrong)
    with pytest.raises(ValueError, match="cannot be loaded as a model: the op 'each': `tables_by_code`"):
        load_model(tmp_path / "model", Two())


def test_fit_is_told(rng):
    x, w = rng.standard_normal((300, 8)).astype(np.float32), np.ones((8, 5), np.float32)
    for rows, few in ((None, False), (1, True), (np.int64(SMALL_BATCH), True), (SMALL_BATCH + 1, False)):
        op = fit(x, w, num_codebooks=2, config=FitConfig("paper"), rows=rows)
        assert (op.tables.by_code is not None) == few
        np.testing.assert_array_equal(amm(x[:1], op), amm(x[:9], op)[:1])
    assert fit(x, w, num_codebooks=0, config=FitConfig(rank=4), rows=1).tables.by_code is None
    with pytest.raises(ValueError, match="`rows` is 0; expected an integer >= 1, or None"):
        fit(x, w, num_codebooks=2, rows=0)
