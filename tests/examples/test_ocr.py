"""The parts of the example that reads lines of text; no model of others and no other fonts than matplotlib's."""

import numpy as np
import pytest
from flax import nnx

import jax_maddness
from examples import ocr, text_lines, text_reader


def test_greedy_decoding_drops_repetitions_and_blanks():
    classes = np.array([[0, 5, 5, 0, 5, 7], [3, 3, 3, 3, 3, 3], [0, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(
        text_reader.collapsed(classes), [[5, 5, 7, 0, 0, 0], [3, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
    )
    assert text_reader.texts(classes, ["", "a", "b", "c", "d", "e", "f", "g"]) == ["eeg", "c", ""]


def test_the_metric_compares_texts_and_not_steps():
    exact = np.array([[0, 5, 0, 7], [1, 2, 3, 4], [0, 0, 0, 0], [6, 0, 6, 0]])
    other = np.array([[5, 5, 7, 0], [1, 2, 4, 4], [0, 0, 0, 0], [6, 6, 0, 0]])
    assert ocr.equal_text(other, (None, exact)) == 0.5
    assert ocr.equal_text(exact, (None, exact)) == 1.0


def test_lines_are_drawn_the_same_each_time():
    fonts, texts = text_lines.matplotlib_fonts(), ["a line of several words, of which some are drawn", "x" * 30, "word"]
    first, again = (list(text_lines.lines(texts * 10, fonts, seed=3)) for _ in range(2))
    assert [words for words, _ in first] == [words for words, _ in again]
    assert len(first) == 20  # a word that is too long for a line is none
    for (words, picture), (_, same) in zip(first, again, strict=True):
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(same))
        assert 0 < len(words) <= text_lines.LONGEST
        values = text_reader.scaled(picture)
        assert values.shape == (3, text_reader.HEIGHT, text_reader.WIDTH)
        assert values.min() >= -1
        assert values.max() <= 1
        assert values.std() > 0.05
    assert any(word.isdigit() for words, _ in first for word in words.split())


@pytest.mark.slow
def test_an_index_finds_what_the_dense_head_finds():
    rng = np.random.default_rng(0)
    dense = nnx.Linear(16, 300, rngs=nnx.Rngs(0))
    features = rng.standard_normal((5, 40, 16)).astype(np.float32)
    kernel, bias = np.asarray(dense.kernel[...]), np.asarray(dense.bias[...])
    index = jax_maddness.build_index(kernel.T, 8, bias=bias, queries=rng.standard_normal((300, 16)))
    found = nnx.jit(lambda head, x: head(x))(text_reader.IndexHead(index, 64), features)
    exact = nnx.jit(lambda head, x: head(x))(text_reader.Head(dense), features)
    assert found.shape == exact.shape == (5, 40)
    assert np.mean(np.asarray(found) == np.asarray(exact)) > 0.99


def test_the_table_compares_with_its_first_row(capsys):
    ocr.print_table([("exact", 1.0, 0.5, 20.0), ("fast", 0.995, 0.5, 4.0)])
    assert "| fast | 99.5 % | 50.0 % | 4.0 | 5.00x |" in capsys.readouterr().out


def test_a_missing_package_is_named():
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        text_lines.folder_of("no_such_package")
