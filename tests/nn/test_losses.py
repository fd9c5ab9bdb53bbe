"""The losses of finetune, and their sum over outputs and hidden layers."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from helpers.tunable import net

from jax_maddness.nn.models.model import adapt
from jax_maddness.nn.tuning import losses
from jax_maddness.nn.tuning.hidden_losses import Objective


def test_terms_are_added_with_their_weights():
    """On blocks, too: whatever module the pattern matches."""
    model, fast, (x, *_) = net()
    module = nn.Sequential([model[0], lambda y: 2 * y])  # a block is what is inside
    variables = {"params": {"layers_0": model[1]["params"]}}
    terms = [
        losses.Term("nmse"),
        losses.Term("nmse", 3.0, layers="layers_0"),
        losses.Term(losses.peaks, 2.0, "Conv_.*"),
    ]
    teacher, student = adapt(model), adapt(fast)
    objective = Objective.of([terms[0], terms[2]], (teacher, student), x)
    assert objective.hidden == ("Conv_0", "Conv_1")
    said, wanted = (objective.outputs(one, one.arrays(), x) for one in (student, teacher))
    peaks = np.mean([losses.peaks(said[1][path][0], wanted[1][path][0]) for path in objective.hidden])
    np.testing.assert_allclose(objective(said, wanted, x), losses.nmse(said[0], wanted[0]) + 2 * peaks, rtol=1e-5)
    whole = adapt((module, variables))
    objective = Objective.of([terms[1]], (whole, whole), x)
    np.testing.assert_allclose(objective.outputs(whole, whole.arrays(), x)[1]["layers_0"][0], wanted[0], rtol=1e-5)


def test_gradients_are_sparse_where_a_max_follows():
    """Only the greatest position of each channel has a gradient; `peaks` takes the teacher's position."""
    rng = np.random.default_rng(0)
    y, wanted = (jnp.asarray(rng.standard_normal((2, 5, 3, 4)), jnp.float32) for _ in range(2))
    for loss, judge in (
        (lambda y: losses.nmse(y.max((1, 2)), wanted.max((1, 2))), y),
        (lambda y: losses.peaks(y, wanted), wanted),
    ):
        hit = np.asarray(jax.grad(loss)(y)) != 0
        np.testing.assert_array_equal(hit, judge == judge.max((1, 2), keepdims=True))


def test_ranks_are_of_positions_alone():
    """The loss is computed by hand; neither an offset that all positions of a channel share nor its unit counts."""
    rng = np.random.default_rng(0)
    y, wanted = rng.standard_normal((2, 3, 5, 2, 4))
    p, q = (np.exp(a.reshape(3, 10, 4) / (0.5 * wanted.std((0, 1, 2)))) for a in (wanted, y))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    loss = losses.ranks(0.5)
    np.testing.assert_allclose(loss(y, wanted), (p * np.log(p / q)).sum(1).mean(), rtol=1e-4)
    unit, shift = rng.uniform(0.1, 10, 4), rng.standard_normal((3, 1, 1, 4))
    np.testing.assert_allclose(loss(y * unit + shift, wanted * unit), loss(y, wanted), rtol=1e-3)
    np.testing.assert_allclose(losses.LOSSES["ranks"](wanted + shift, wanted, None), 0, atol=1e-5)


def test_divergence_of_logits():
    p, q = jnp.array([0.5, 0.5]), jnp.array([0.9, 0.1])
    one, other = jnp.log(p) + 3, jnp.log(q)
    expected = (p * jnp.log(p / q)).sum()
    np.testing.assert_allclose(losses.LOSSES["kl"](other, one, None), expected, rtol=1e-5)
    np.testing.assert_allclose(losses.kl(2.0)(2 * other, 2 * one, None), 4 * expected, rtol=1e-5)
