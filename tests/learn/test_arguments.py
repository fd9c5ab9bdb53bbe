"""Arguments of `fit`, `evaluate` and `FitConfig` that are not what they should be, and those that NumPy makes."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest

from jax_maddness import FitConfig, evaluate, fit

PAPER = FitConfig("paper")
X = np.random.default_rng(0).standard_normal((200, 8))
W = np.ones((8, 3))


def learn(x_train, w=W, num_codebooks=2, **others):
    return fit(x_train, w, num_codebooks=num_codebooks, config=PAPER, **others)


def test_a_generator_is_an_error_that_says_how_batches_come():
    for batches in ((x for x in (X, X)), iter([X])):
        with pytest.raises(TypeError, match=r"`x_train` is a .*, which can be read only once.*Pass a function"):
            learn(batches)
    with pytest.raises(TypeError, match=r"`w` is a generator, which can be read only once; expected an array\.$"):
        learn(X, (x for x in W))


def test_a_list_of_unequal_batches_is_an_error_that_says_how_batches_come():
    with pytest.raises(TypeError, match=r"`x_train` is list, which NumPy cannot convert.*`lambda: iter\(x_train\)`"):
        learn([X, X[:10]])


@pytest.mark.parametrize("wrong", [None, object(), "rows", {"a": X}])
def test_what_is_no_array_is_an_error(wrong):
    for name, call in [("x_train", lambda: learn(wrong)), ("w", lambda: learn(X, wrong))]:
        with pytest.raises(TypeError, match=f"`{name}` is .*expected .*real numbers"):
            call()


class Tensor:
    """An array of another library, with dtypes that NumPy does not know."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, types.SimpleNamespace()

    def __array__(self, dtype=None, copy=None):
        if self.array is None:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        return np.asarray(self.array, dtype)


def test_arrays_of_other_libraries_are_taken():
    op = learn(Tensor(X), Tensor(W), bias=Tensor(np.ones(3)))
    np.testing.assert_array_equal(op.tables.offset, learn(X, bias=np.ones(3)).tables.offset)
    assert evaluate(op, Tensor(X), Tensor(W), Tensor(np.ones(3))).nmse < 1


def test_an_array_that_cannot_be_converted_is_an_error():
    wrong = Tensor(X)
    wrong.array = None
    with pytest.raises(TypeError, match="`x_train` is Tensor, which NumPy cannot convert to an array of numbers"):
        learn(wrong)


def test_tensors_of_torch_are_taken():
    torch = pytest.importorskip("torch")  # no test installs it: `Tensor` above stands in for it everywhere else
    learn(torch.from_numpy(X), torch.from_numpy(W))


def test_masked_values_are_refused_and_a_mask_without_any_is_taken():
    masked = np.ma.MaskedArray(X, mask=np.zeros(X.shape, bool))
    np.testing.assert_array_equal(learn(masked).tables.values, learn(X).tables.values)
    masked[3, 4] = np.ma.masked
    with pytest.raises(ValueError, match="`x_train` has 1 masked values, and all values count"):
        learn(masked)
    with pytest.raises(ValueError, match="`w` has 1 masked values"):
        learn(X, np.ma.MaskedArray(W, mask=np.arange(24).reshape(8, 3) == 5))


@pytest.mark.parametrize("kind", [np.int64, np.int8, np.uint16])
def test_numpy_integers_are_taken(kind):
    assert learn(X, num_codebooks=kind(2)).num_codebooks == 2
    config = FitConfig("paper", num_split_features=kind(3), width=kind(4), rank=kind(1), steps=kind(50), seed=kind(0))
    assert config == FitConfig("paper", num_split_features=3, width=4, rank=1, steps=50, seed=0)
    assert type(config.rank) is int
    assert hash(config) == hash(dataclasses.replace(config, rank=1))


def test_numpy_floats_are_taken():
    assert FitConfig(ridge=np.float32(0.5)) == FitConfig(ridge=0.5)


@pytest.mark.parametrize("true", [True, np.True_, jnp.bool_(1)])
def test_bools_are_no_numbers(true):
    with pytest.raises(TypeError, match=r"`num_codebooks` is .*True.*; expected an integer"):
        learn(X, num_codebooks=true)
    for field in ("ridge", "num_split_features", "width", "rank", "outliers", "steps", "seed"):
        with pytest.raises(ValueError, match=f"`{field}` is .*True"):
            FitConfig(**{field: true})
