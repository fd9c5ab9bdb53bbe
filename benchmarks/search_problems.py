"""Problems of search.py: real vectors with queries of their own, and a trained head with many outputs.

The vectors are WordNet's glosses, embedded by MiniLM; held-out glosses are the queries. The head predicts the word that
a gloss defines, from MiniLM's vector through a hidden layer of 768, with one output for each of 50,000 words. It is
trained here, because no package was found that ships the head of a language model of that size.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from examples import glosses

WIDTH = 768
SCALE = 20.0
"""Factor of the logits, as vectors have length one."""


@dataclasses.dataclass(frozen=True)
class Neighbors:
    """Vectors to search in, and held-out queries.

    Attributes:
      database: the vectors, [M, D].
      validation: queries [V, D] that the number of candidates is chosen on.
      tests: queries [Q, D] that recall is reported on, by name.
    """

    database: np.ndarray
    validation: np.ndarray
    tests: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Head:
    """A dense layer with many outputs, `w [D, M]`, and rows that it receives; the index may learn from `train`.

    Attributes:
      named: share of held-out glosses whose word is among the first 1 and the first 100 outputs.
    """

    w: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    named: dict[int, float]


def load(
    limit: int | None, held_out: int, others: Sequence[pathlib.Path], outputs: int, steps: int, cache: pathlib.Path
) -> tuple[Neighbors, Head]:
    """Loads both problems from the same glosses, of which `held_out` are for validation and as many for testing.

    Args:
      limit: number of glosses, drawn at random; None: all.
      held_out: number of queries of each kind.
      others: `.npz` files whose `x_test [Q, 384]` are further queries, of vectors by the same encoder.
      outputs: number of outputs of the head.
      steps: number of training steps of the head.
      cache: folder of the vectors and the head.
    """
    texts, words = glosses.load(limit)
    vectors = glosses.vectors(texts, cache)
    order = np.random.default_rng(1).permutation(len(texts))
    validation, test, database = np.split(order, [held_out, 2 * held_out])
    tests = {"held-out glosses": vectors[test]}
    tests |= {path.stem: np.load(path)["x_test"].astype(np.float32) for path in others}
    neighbors = Neighbors(vectors[database], vectors[validation], tests)
    return neighbors, _head(vectors, words, (database, validation, test), outputs, steps, cache)


def _head(
    vectors: np.ndarray,
    words: Sequence[str],
    parts: tuple[np.ndarray, np.ndarray, np.ndarray],
    outputs: int,
    steps: int,
    cache: pathlib.Path,
) -> Head:
    """Trains the head, or reads it from the cache."""
    database, validation, test = parts
    first = [text.split(", ")[0].lower() for text in words]
    names = {name: i for i, (name, _) in enumerate(Counter(first[i] for i in database).most_common(outputs))}
    labels = np.array([names.get(name, -1) for name in first])
    train = database[labels[database] >= 0]
    key = hashlib.sha256(f"{len(words)} {len(names)} {steps} {WIDTH}".encode() + train.tobytes()).hexdigest()[:16]
    path = cache / f"head-{key}.npz"
    if not path.exists():
        hidden, w = _train(vectors[train], labels[train], len(names), steps)
        np.savez(path, hidden=hidden, w=w.astype(np.float32))
    kept = np.load(path)
    features = jax.jit(_features)
    x = {name: np.asarray(features(kept["hidden"], vectors[rows])) for name, rows in
         (("train", train[:20000]), ("validation", validation), ("test", test))}  # fmt: skip
    known = labels[test] >= 0
    logits = x["test"][known] @ kept["w"]
    before = (logits > np.take_along_axis(logits, labels[test][known][:, None], axis=1)).sum(1)
    return Head(kept["w"], named={n: float((before < n).mean()) for n in (1, 100)}, **x)


def _features(hidden: jax.Array, vectors: jax.Array) -> jax.Array:
    """Maps MiniLM's vectors [n, 384] through the hidden layer [385, WIDTH] to [n, WIDTH], of length one."""
    x = jax.nn.gelu(jnp.sqrt(vectors.shape[1]) * vectors @ hidden[:-1] + hidden[-1])
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _train(vectors: np.ndarray, labels: np.ndarray, outputs: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Trains the hidden layer and the head with Adam; each output starts as the mean of its features."""
    rng = np.random.default_rng(2)
    hidden = jnp.float32(rng.standard_normal((vectors.shape[1] + 1, WIDTH)) / np.sqrt(vectors.shape[1]))
    features = np.asarray(jax.jit(_features)(hidden, vectors))
    start = np.zeros((outputs, WIDTH), np.float32)
    np.add.at(start, labels, features - features.mean(0))
    start /= np.linalg.norm(start, axis=1, keepdims=True) + 1e-9
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, steps))

    def loss(parameters: tuple, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = _features(parameters[0], x) @ parameters[1].T
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(parameters: tuple, state: optax.OptState, x: jax.Array, y: jax.Array) -> tuple:
        updates, state = optimizer.update(jax.grad(loss)(parameters, x, y), state)
        return optax.apply_updates(parameters, updates), state

    parameters = (hidden, jnp.asarray(SCALE * start))
    state = optimizer.init(parameters)
    for _ in tqdm(range(steps), desc="training a head, once"):
        rows = rng.integers(0, len(labels), 512)
        parameters, state = step(parameters, state, vectors[rows], labels[rows])
    return np.asarray(parameters[0]), np.asarray(parameters[1]).T
