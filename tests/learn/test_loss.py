"""Losses of the user's: trees and tables follow them, in the user's units, and what does not go together is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_maddness import FitConfig, ObliqueTrees, amm, fit

ROWS, FEATURES, OUTPUTS, CODEBOOKS = 600, 12, 4, 2


@pytest.fixture(scope="module")
def problem():
    """Rows, others, weights, bias: logits of a linear classifier, with another large output that says nothing."""
    rng = np.random.default_rng(0)
    x = np.float32(rng.standard_normal((2 * ROWS, 5)) @ rng.standard_normal((5, FEATURES)))
    w = np.float32(rng.standard_normal((FEATURES, OUTPUTS)))
    return x[:ROWS], x[ROWS:], w, np.float32([3, -2, 1, 0])


def cross_entropy(y, exact, label):
    return -jnp.take_along_axis(jax.nn.log_softmax(y), label[:, None], axis=-1).mean()


def squared_errors(op, problem):
    """Per output, on the other rows."""
    _, x, w, b = problem
    return np.square(np.asarray(amm(x, op)) - (x @ w + b)).mean(0)


@pytest.mark.slow
def test_cross_entropy_classifies_better_than_squared_error(problem):
    x, others, w, b = problem
    w = w + 8 * np.float32(np.ones(OUTPUTS)) * np.random.default_rng(1).standard_normal((FEATURES, 1), np.float32)
    label, expected = (x @ w + b).argmax(1), (others @ w + b).argmax(1)
    right = {}
    for loss, extra in ((None, ()), (cross_entropy, (label,))):
        op = fit(x, w, b, num_codebooks=CODEBOOKS, config=FitConfig("oblique", steps=200, loss=loss), extra=extra)
        right[loss] = (np.asarray(amm(others, op)).argmax(1) == expected).mean()
    assert right[cross_entropy] > right[None] + 0.05


@pytest.mark.slow
def test_weights_per_output_move_the_error_to_the_others(problem):
    x, _, w, b = problem

    def weighted(y, exact):
        return (jnp.square(y - exact) @ jnp.array([100.0, 1, 1, 1])).mean()

    plain, moved = (
        squared_errors(
            fit(x, w, b, num_codebooks=CODEBOOKS, config=FitConfig("oblique", steps=200, loss=loss)), problem
        )
        for loss in (None, weighted)
    )
    assert moved[0] < 0.7 * plain[0]
    assert moved[1:].sum() > plain[1:].sum()


@pytest.mark.slow
def test_weights_per_row_move_the_error_to_the_others(problem):
    x, others, w, b = problem

    def weighted(y, exact, weight):
        return (weight * jnp.square(y - exact).sum(-1)).mean()

    config = FitConfig("oblique", steps=200, loss=weighted)
    error = {}
    for sign in (-1, 1):
        weight = np.where(sign * x[:, 0] > 0, 1, 0.01).astype(np.float32)
        op = fit(x, w, b, num_codebooks=CODEBOOKS, config=config, extra=(weight,))
        error[sign] = np.square(np.asarray(amm(others, op)) - (others @ w + b)).sum(1)[others[:, 0] > 0].mean()
    assert error[1] < 0.8 * error[-1]


@pytest.mark.slow
def test_the_loss_sees_outputs_in_the_users_units_and_the_rows_extra(problem):
    x, _, w, b = problem
    x, w = 100 * x[:100].reshape(4, 25, FEATURES) + 7, 1e-3 * w
    numbers = np.arange(100).reshape(4, 25)
    seen = []

    def loss(y, exact, number):
        jax.debug.callback(lambda *arrays: seen.append(arrays), y, exact, number)
        return jnp.square(y - exact).mean()

    op = fit(x, w, b, num_codebooks=6, config=FitConfig("auto", loss=loss, steps=0), extra=(numbers,))
    assert isinstance(op.trees, ObliqueTrees)
    y, exact, number = map(np.asarray, seen[0])
    np.testing.assert_allclose(exact, (x @ w + b).reshape(100, -1)[number], rtol=1e-3, atol=1e-3)
    step = 6 * np.asarray(op.tables.scale).max()
    np.testing.assert_allclose(y, np.asarray(amm(x, op)).reshape(100, -1)[number], atol=step)


@pytest.mark.parametrize("method", ["paper", "axis"])
def test_methods_without_training_refuse_a_loss(method):
    with pytest.raises(ValueError, match=rf'Method "{method}" has no training.* Take method "oblique"'):
        FitConfig(method, loss=cross_entropy)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 30}, "`steps` is 30; expected a multiple of 50"),
        ({"steps": -50}, "`steps` is -50"),
        ({"seed": -1}, "`seed` is -1; expected an integer >= 0"),
        ({"seed": 0.5}, "`seed` is 0.5"),
        ({"loss": "mse"}, "`loss` is str; expected a function"),
    ],
)
def test_fields_that_make_no_sense_are_refused(fields, message):
    with pytest.raises((ValueError, TypeError), match=message):
        FitConfig("oblique", **fields)


def test_extra_must_fit(problem):
    x, _, w, b = problem
    config = FitConfig("oblique", loss=cross_entropy)
    with pytest.raises(ValueError, match="`extra` is given without a `loss`"):
        fit(x, w, b, num_codebooks=2, extra=(np.zeros(ROWS),))
    with pytest.raises(ValueError, match=r"`extra\[1\]` has shape \(3,\); expected \(600,\) and perhaps more"):
        fit(x, w, b, num_codebooks=2, config=config, extra=(np.zeros(ROWS), np.zeros(3)))
    with pytest.raises(ValueError, match="`x_train` comes in batches"):
        fit(lambda: iter([x]), w, b, num_codebooks=2, config=config, extra=(np.zeros(ROWS),))
