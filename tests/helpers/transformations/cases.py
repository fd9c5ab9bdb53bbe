"""The columns of docs/transformations.md: each public function that runs on arrays, with a tiny problem."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from helpers.ops import put, random_op, random_rows
from jax import lax

from jax_maddness import (
    OutlierRows,
    VectorIndex,
    aggregate,
    amm,
    amm_with_exact_rows,
    encode,
    max_over_positions,
    sample,
    search,
    top_k,
)
from jax_maddness.retrieval.quantizer import Quantizer

MEMBERS, ROWS, FEATURES, CODEBOOKS, OUTPUTS, VECTORS = 4, 3, 4, 2, 5, 20


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A public function and its arguments.

    Attributes:
      call: takes `x` and a state; the first result is the one that has derivatives.
      x: `[MEMBERS, ROWS, last]`; for `max_over_positions`, the rows of a member are its positions.
      states: all that the function needs besides `x`, a pytree; two of the same structure.
      smooth: takes `x`, a state and the first result for them, which it holds constant; a function of the first two
        whose derivatives are those that the documentation promises for the first result. None: results are integers,
        so that all derivatives are zero.
    """

    call: Callable[[jax.Array, Any], Any]
    x: jax.Array
    states: tuple[Any, Any]
    smooth: Callable[[jax.Array, Any, jax.Array], jax.Array] | None

    @property
    def state(self) -> Any:
        """The first of the states."""
        return self.states[0]

    @property
    def stack(self) -> Any:
        """Both states in one, as `jax.vmap` and `jax.lax.scan` take them."""
        return put(jax.tree.map(lambda *arrays: np.stack(arrays), *self.states))

    @property
    def not_finite(self) -> jax.Array:
        """`x` with a NaN and an infinity in two of its members."""
        if self.x.dtype == jnp.uint8:
            return self.x
        x = np.array(self.x)
        x[1, 2, 0], x[3, 0, 1] = np.nan, np.inf
        return put(x)

    def by_member(self, x: jax.Array, state: Any) -> Any:
        """Calls the function for each member of `x` and stacks the results."""
        return stacked([self.call(put(member), state) for member in np.asarray(x)])


def stacked(results: list[Any]) -> Any:
    """Results of several calls as one pytree of NumPy arrays."""
    return jax.tree.map(lambda *arrays: np.stack(arrays), *results)


def _smooth_amm(x: jax.Array, op: Any, y: jax.Array) -> jax.Array:
    """The product, for derivatives in `x` and the weights, and the rescaling of constant sums."""
    sums = aggregate(encode(lax.stop_gradient(x), op.trees), op.tables).astype(jnp.float32)
    return x @ op.weights + sums * op.tables.scale + op.tables.offset


def _smooth_exact_rows(x: jax.Array, state: Any, y: jax.Array) -> jax.Array:
    exact = x @ state[0].weights
    return jnp.where(jnp.abs(exact - y) < 1e-3, exact, _smooth_amm(x, state[0], y))


def _smooth_top_k(x: jax.Array, op: Any, values: jax.Array) -> jax.Array:
    exact = x @ op.weights
    return _those_that_equal(exact[..., None, :], values[..., None]).sum(-1)


def _smooth_search(x: jax.Array, index: Any, scores: jax.Array) -> jax.Array:
    exact = x @ index.vectors.T
    return _those_that_equal(exact[..., None, :], scores[..., None]).sum(-1)


def _smooth_maximum(x: jax.Array, op: Any, greatest: jax.Array) -> jax.Array:
    return _those_that_equal(x @ op.weights, greatest[..., None, :]).sum(-2)


def _those_that_equal(exact: jax.Array, found: jax.Array) -> jax.Array:
    """The exact products that were found; zero in the place of all others."""
    return jnp.where(jnp.abs(exact - found) < 1e-4, exact, 0.0)


def _rows(rng: np.random.Generator) -> jax.Array:
    """Normal rows, of which three are far from the others: two of the first member, one of the third."""
    x = random_rows(rng, MEMBERS * ROWS, FEATURES).reshape(MEMBERS, ROWS, FEATURES)
    x[[0, 0, 2], [0, 2, 1]] *= 10
    return put(x)


def _index(rng: np.random.Generator) -> VectorIndex:
    """An index of random vectors and random codes: an index that `build_index` learns takes seconds to compile."""
    prototypes = random_rows(rng, CODEBOOKS * 16, FEATURES).reshape(CODEBOOKS, 16, FEATURES)
    encoder = np.zeros((CODEBOOKS, 16, FEATURES + 1), np.float32)
    quantizer = (prototypes, np.zeros((CODEBOOKS, 16), np.float32), encoder, np.zeros(FEATURES + 1, np.float32))
    codes, ids = rng.integers(0, 256, (1, CODEBOOKS // 2, 64), np.uint8), np.arange(VECTORS, dtype=np.int32)
    vectors = put(random_rows(rng, VECTORS, FEATURES))
    return VectorIndex(put(codes), Quantizer(*put(quantizer)), put(ids), None, vectors, None, "ip", VECTORS)


def _functions() -> dict[str, Case]:
    rng = np.random.default_rng(0)
    x = _rows(rng)
    codes = put(rng.integers(0, 16, (MEMBERS, ROWS, CODEBOOKS)).astype(np.uint8))
    one, two = (random_op(rng, FEATURES, CODEBOOKS, OUTPUTS, weights=True) for _ in range(2))
    center, scale = put(np.zeros(FEATURES, np.float32)), put(np.ones(FEATURES, np.float32))
    rules = [OutlierRows(center, scale, put(np.float32(threshold))) for threshold in (4, 3)]

    def with_exact_rows(x: jax.Array, state: Any) -> jax.Array:
        return amm_with_exact_rows(x, *state, 1)

    return {
        "encode": Case(encode, x, (one.trees, two.trees), None),
        "aggregate": Case(aggregate, codes, (one.tables, two.tables), None),
        "amm": Case(amm, x, (one, two), _smooth_amm),
        "amm_with_exact_rows": Case(with_exact_rows, x, ((one, rules[0]), (two, rules[1])), _smooth_exact_rows),
        "max_over_positions": Case(
            lambda x, op: max_over_positions(x, op, num_candidates=2), x, (one, two), _smooth_maximum
        ),
        "top_k": Case(lambda x, op: top_k(x, op, k=2, num_candidates=3), x, (one, two), _smooth_top_k),
        "search": Case(
            lambda x, index: search(x, index, 2, num_candidates=8), x, (_index(rng), _index(rng)), _smooth_search
        ),
        "sample": Case(
            lambda x, index: sample(jax.random.key(0), x, index, num_candidates=8), x, (_index(rng), _index(rng)), None
        ),
    }


FUNCTIONS = _functions()
"""The cases by the names of their functions."""
