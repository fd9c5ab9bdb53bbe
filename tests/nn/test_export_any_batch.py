"""Replaced layers of every product are exported for any number of examples, and compute the same as plain calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from jax_maddness import FitConfig, Rule, disabled_export_checks, replace
from jax_maddness.nn.layers import convolution

PAPER = FitConfig("paper")


class Net(nnx.Module):
    """Convolutions, one of them depthwise and one under a global maximum, and an output layer."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.depthwise = nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs)
        self.last = nnx.Conv(8, 16, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(16, 40, rngs=rngs)

    def __call__(self, x):
        x = self.depthwise(nnx.relu(self.first(x)))
        return self.head(self.last(x).max((1, 2)))


RULES = {
    "codes": Rule("last", num_codebooks=8, config=PAPER),
    "shared codes": Rule("last", num_codebooks=9, conv="shared", config=PAPER),
    "codes of patches": Rule("last", num_codebooks=8, conv="patches", config=PAPER),
    "factors": Rule("last", num_codebooks=0, config=FitConfig(rank=8)),
    "int8": Rule("last", product="int8"),
    "low rank": Rule("last", product="low rank", rank=4),
    "rewritten": Rule("depthwise", product="rewritten"),
    "maximum": Rule("last", num_codebooks=8, config=PAPER, num_candidates=2),
    "maximum, exact rows": Rule("last", num_codebooks=9, config=PAPER, conv="shared", exact_rows=0.2, num_candidates=2),
    "linear": Rule("head", num_codebooks=2, config=PAPER),
    "top outputs": Rule("head", top=2, num_candidates=8, config=PAPER),
}


@pytest.fixture(scope="module")
def net():
    return Net(nnx.Rngs(0))


@pytest.fixture(scope="module")
def batches():
    return [jnp.asarray(np.random.default_rng(i).standard_normal((24, 8, 8, 3)), jnp.float32) for i in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize("block", [convolution.BLOCK, 1000])
@pytest.mark.parametrize("product", RULES)
def test_any_number_of_examples(net, batches, product, block, monkeypatch):
    """Patches of all examples fit into one block, or those of some lines of one example."""
    monkeypatch.setattr(convolution, "BLOCK", block)
    graph, state = nnx.split(replace(net, RULES[product], batches))
    call = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    (n,) = export.symbolic_shape("n", constraints=["n >= 1"])
    shape = jax.ShapeDtypeStruct((n, *batches[0].shape[1:]), jnp.float32)
    exported = export.export(call, disabled_checks=disabled_export_checks())(state, shape)
    for rows in (1, 5):
        np.testing.assert_allclose(exported.call(state, batches[0][:rows]), call(state, batches[0][:rows]), atol=1e-5)
