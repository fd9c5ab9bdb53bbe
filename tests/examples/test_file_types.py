"""The file-type model of the examples: its layers by hand, what it sees of a file; trained weights where installed."""

import math

import jax
import numpy as np
import pytest
from flax import nnx

import jax_maddness
from examples import file_bytes, file_type_model, file_types
from jax_maddness import FitConfig, Rule

TINY = file_type_model.Config(tokens=9, length=32, width=3, group=2, taps=3, features=7, types=4)


@pytest.fixture
def model():
    """Random in all its weights."""
    model = file_type_model.FileTypes(TINY, nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for parameter in jax.tree.leaves(nnx.state(model, nnx.Param), is_leaf=lambda v: isinstance(v, nnx.Variable)):
        parameter[...] = rng.standard_normal(parameter.shape).astype(np.float32)
    return model


def by_hand(model, tokens):
    """One file, position by position."""
    x = np.asarray(model.bytes.embedding[...])[tokens].reshape(TINY.positions, -1)
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + TINY.epsilon)
    x = x * np.asarray(model.norm.scale[...]) + np.asarray(model.norm.bias[...])
    kernel = np.asarray(model.conv.kernel[...])
    y = [sum(x[p + tap] @ kernel[tap] for tap in range(TINY.taps)) for p in range(TINY.positions - TINY.taps + 1)]
    pooled = np.max(y, 0) + np.asarray(model.conv.bias[...])
    pooled = np.array([v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) / 2 for v in pooled])
    pooled = (pooled - pooled.mean()) / np.sqrt(pooled.var() + TINY.epsilon)
    pooled = pooled * np.asarray(model.pooled_norm.scale[...]) + np.asarray(model.pooled_norm.bias[...])
    return pooled @ np.asarray(model.head.kernel[...]) + np.asarray(model.head.bias[...])


@pytest.mark.slow
def test_logits_are_what_they_are_by_hand(model):
    tokens = np.random.default_rng(1).integers(0, TINY.tokens, (3, TINY.length))
    expected = np.stack([by_hand(model, row) for row in tokens])
    np.testing.assert_allclose(jax.jit(model)(tokens), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_trained_weights_give_what_the_graph_gives(tmp_path):
    """On files of all kinds of bytes, and one that is mostly padding."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    pytest.importorskip("magika")
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 256, 2048), np.full(2048, file_bytes.PAD), file_bytes.tokens(__file__)]
    rows[1][:20] = rows[0][:20]
    tokens = np.stack(rows).astype(np.int32)
    session = runtime.InferenceSession(str(file_type_model.folder() / "model.onnx"))
    (expected,) = session.run(None, {"bytes": tokens})
    model = file_type_model.load()
    np.testing.assert_allclose(jax.nn.softmax(model(tokens)), expected, atol=2e-3)
    assert file_type_model.types()[int(expected[2].argmax())] == "python"


def test_a_file_is_seen_from_both_ends_without_whitespace(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b" \n" + bytes(range(97, 109)) + b"\n\n")
    found = file_bytes.tokens(str(path))
    assert found[:15].tolist() == [*range(97, 109), 10, 10, file_bytes.PAD]
    assert found[-15:].tolist() == [file_bytes.PAD, 32, 10, *range(97, 109)]
    path.write_bytes(b"a" * 5000 + b"b" * 5000)
    found = file_bytes.tokens(str(path))
    assert (found[:1024] == ord("a")).all()
    assert (found[1024:] == ord("b")).all()
    path.write_bytes(b"   short  ")
    assert file_bytes.tokens(str(path)) is None


def test_no_package_is_in_two_splits_and_no_input_comes_twice(tmp_path):
    for package in range(60):
        folder = tmp_path / f"package{package}-1.0"
        (folder / "__pycache__").mkdir(parents=True)
        (folder / "__pycache__" / "module.pyc").write_bytes(b"a cache")
        for number in range(20):
            text = f"{package} is of package {package}, as is the number {number}" if number else "the same in all"
            (folder / f"module.{'abcdefghijklmnopqrst'[number]}").write_text(text)
    files = file_bytes.listed([str(tmp_path)])
    assert len(files) == 60 * 20
    assert {file.package for file in files} == {f"package{i}" for i in range(60)}
    found = file_bytes.load({"training": 200, "validation": 20, "test": 150}, [str(tmp_path)])
    rows = np.concatenate(list(found.values()))
    assert len(np.unique(rows, axis=0)) == len(rows)
    split_of = {file.package: file.split for file in files}
    for split, own in found.items():
        texts = [bytes(row[row != file_bytes.PAD][:60].astype(np.uint8)).decode() for row in own]
        assert {split_of[f"package{text.split()[0]}"] for text in texts if "same" not in text} == {split}
    with pytest.raises(ValueError, match="files of 9999 for test"):
        file_bytes.load({"test": 9999}, [str(tmp_path)])


@pytest.mark.slow
def test_int8_is_nearly_exact_and_checked_maxima_are_never_above(model):
    tokens = np.random.default_rng(2).integers(0, TINY.tokens, (64, TINY.length))
    x = jax.jit(model.groups)(tokens)

    def maxima(model):
        return np.asarray(jax.jit(model.conv)(x).max(1))

    exact, int8 = maxima(model), maxima(file_types.in_int8(model))
    assert 0 < np.abs(int8 - exact).max() < 0.05 * exact.std()
    rule = Rule("conv", num_codebooks=6, conv="shared", config=FitConfig("paper"), num_candidates=1)
    checked = jax_maddness.replace(model, rule, [tokens], progress=False)
    proposed = file_types.with_options(checked, num_candidates=0)
    errors = [maxima(one) - exact for one in (checked, proposed)]
    assert errors[0].max() < 1e-4 < errors[1].max()
    assert np.abs(errors[0]).mean() < np.abs(errors[1]).mean()
