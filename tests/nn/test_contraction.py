"""Layers as matrix products, pure JAX: rows times weights is what Flax computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.ops import put

from jax_maddness.nn.layers import convolution
from jax_maddness.nn.layers.contraction import Contraction
from jax_maddness.nn.layers.convolution import Convolution
from jax_maddness.nn.layers.form import Form
from jax_maddness.nn.layers.forms import FORMS
from jax_maddness.nn.models.nnx_model import NnxModel

RNGS = nnx.Rngs(0)
LAYERS = {
    "linear": (lambda: nnx.Linear(6, 5, rngs=RNGS), (2, 3, 6)),
    "linear of one row": (lambda: nnx.Linear(6, 5, rngs=RNGS), (6,)),
    "no bias": (lambda: nnx.Linear(6, 5, use_bias=False, rngs=RNGS), (2, 6)),
    "general": (lambda: nnx.LinearGeneral((2, 3), (4, 5), axis=(-2, -1), rngs=RNGS), (7, 2, 3)),
    "general, apart": (lambda: nnx.LinearGeneral((2, 3), (4,), axis=(1, -1), rngs=RNGS), (7, 2, 5, 3)),
    "einsum": (lambda: nnx.Einsum("nta,hab->nthb", (8, 2, 4), (8, 4), rngs=RNGS), (3, 5, 2)),
    "einsum, mixed": (lambda: nnx.Einsum("...td,dnh->...nth", (6, 2, 4), (2, 4), rngs=RNGS), (3, 5, 6)),
    "einsum of two": (lambda: nnx.Einsum("bnth,nhd->btd", (2, 4, 6), (6,), rngs=RNGS), (3, 2, 5, 4)),
    "conv": (lambda: nnx.Conv(4, 6, (3, 3), rngs=RNGS), (2, 7, 8, 4)),
    "conv 1-D": (lambda: nnx.Conv(4, 6, 5, rngs=RNGS), (2, 9, 4)),
    "conv without a batch": (lambda: nnx.Conv(4, 6, 3, rngs=RNGS), (9, 4)),
    "conv, two batches": (lambda: nnx.Conv(4, 6, 3, rngs=RNGS), (2, 3, 9, 4)),
    "conv, strides": (lambda: nnx.Conv(4, 6, (3, 2), strides=(2, 3), rngs=RNGS), (2, 9, 8, 4)),
    "conv, valid": (lambda: nnx.Conv(4, 6, (3, 2), padding="VALID", rngs=RNGS), (2, 9, 8, 4)),
    "conv, explicit": (lambda: nnx.Conv(4, 6, (3, 2), padding=((2, 0), (1, 1)), rngs=RNGS), (2, 9, 8, 4)),
    "conv, one number": (lambda: nnx.Conv(4, 6, (3, 2), padding=1, rngs=RNGS), (2, 9, 8, 4)),
    "conv, circular": (lambda: nnx.Conv(4, 6, (3, 2), strides=2, padding="CIRCULAR", rngs=RNGS), (2, 9, 8, 4)),
    "conv, reflect": (lambda: nnx.Conv(4, 6, (3, 2), padding="REFLECT", rngs=RNGS), (2, 9, 8, 4)),
    "conv, causal": (lambda: nnx.Conv(4, 6, 3, kernel_dilation=2, padding="CAUSAL", rngs=RNGS), (2, 9, 4)),
    "conv, dilation": (lambda: nnx.Conv(4, 6, (3, 2), kernel_dilation=(2, 3), strides=2, rngs=RNGS), (2, 9, 8, 4)),
    "conv, groups": (lambda: nnx.Conv(4, 6, (3, 3), feature_group_count=2, rngs=RNGS), (2, 7, 8, 4)),
    "conv, masked": (lambda: nnx.Conv(4, 6, 3, mask=jnp.tril(jnp.ones((3, 4, 6))), rngs=RNGS), (2, 9, 4)),
}


@pytest.fixture(params=LAYERS)
def layer_and_input(request, rng):
    make, shape = LAYERS[request.param]
    module = make()
    if module.bias is not None:
        module.bias[...] = jnp.asarray(rng.standard_normal(module.bias.shape), jnp.float32)
    return module, put(np.float32(rng.standard_normal(shape)))


def of(module, x):
    (layer,) = NnxModel(module, lambda m, batch: m(batch)).layers(x)
    assert layer.reason == ""
    return layer, layer.weights()[0], layer.biases()[0]


def test_rows_times_weights_is_the_layer(layer_and_input, rng):
    module, x = layer_and_input
    layer, w, b = of(module, x)
    form = layer.form
    assert w.shape == (form.groups, *layer.shape)

    @jax.jit
    def by_hand(x):
        product = lambda p: (jnp.einsum("...gd,gdm->...gm", p, w) + b).reshape(*p.shape[:-2], -1)  # noqa: E731
        rows = form.map_rows(lambda rows: rows, x)
        exact = form.output(form.exact_product(x, w) + b.reshape(-1), x)
        return rows, form.output(form.map_rows(product, x), x), exact

    rows, y, exact = by_hand(x)
    expected = jax.jit(module)(x)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(exact, expected, rtol=1e-4, atol=1e-5)
    assert rows.shape[:-2] == form.row_shape(x)
    assert form.has_positions == isinstance(module, nnx.Conv)
    rows = np.asarray(rows).reshape(form.num_rows(x), form.groups, -1)
    places = rng.permutation(len(rows))[:5]
    np.testing.assert_array_equal(jax.jit(lambda x: form.rows_at(x, places))(x), rows[places])


@pytest.mark.parametrize("block", [1, 200, 700, 10**6])
def test_blocks_of_patches_change_nothing(monkeypatch, rng, block):
    """Down to one line of one example at a time, with a last block that is not full."""
    form = Convolution((3, 2), (2, 1), (1, 2), "SAME")
    x = jnp.asarray(rng.standard_normal((5, 9, 6, 2)), jnp.float32)
    monkeypatch.setattr(convolution, "BLOCK", block)
    y = jax.jit(lambda x: form.map_rows(lambda patches: patches[..., 0, :], x))(x)
    np.testing.assert_array_equal(y, form.patches(form.prepared(x), form.out_positions(x))[..., 0, :])


@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
def test_a_1x1_convolution_has_no_blocks(monkeypatch, rng, strides):
    """Its patches are the positions, however many: blocks would copy the input and the result."""
    form = Convolution((1, 1), strides, (1, 1), "SAME")
    x = jnp.asarray(rng.standard_normal((5, 9, 6, 2)), jnp.float32)
    monkeypatch.setattr(convolution, "BLOCK", 1)
    run = lambda x: form.map_rows(lambda patches: patches[..., 0, :], x)  # noqa: E731
    np.testing.assert_array_equal(run(x), x[:, :: strides[0], :: strides[1]])
    assert "scan" not in str(jax.make_jaxpr(run)(x))


@pytest.mark.parametrize(
    ("equation", "why"),
    [
        ("bd,dh->bhd", "element by element"),
        ("btd,dh->bh", "sums one operand"),
        ("bd,h->bdh", "contracts no axis"),
        ("bdd,dh->bh", "occurs twice"),
        ("bd,...dh->b...h", "'...'"),
    ],
)
def test_an_einsum_that_is_no_product_says_why(equation, why):
    with pytest.raises(ValueError, match=why):
        Contraction.of_einsum(equation, (2, 3))


def test_files_know_every_form():
    assert set(FORMS) == set(Form.__subclasses__())
