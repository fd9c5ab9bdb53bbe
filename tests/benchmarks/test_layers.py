"""benchmarks/layers/: patches times weights are convolutions, and rows that are kept are those of the layer."""

import jax
import numpy as np
import pytest

from benchmarks.layers import harvest, models
from benchmarks.layers.patches import Window, matrix, outputs_at, patches
from benchmarks.layers.sampled import Layer, UnusableError, file_name, why_not

WINDOWS = [
    Window((3,), (1,), (1,), ((1, 1),)),
    Window((4,), (3,), (2,), ((0, 5),)),
    Window((5,), (2,), (3,), ((0, 0),), "SAME_LOWER"),
    Window((1, 1), (1, 1), (1, 1), ((0, 0), (0, 0))),
    Window((3, 5), (2, 1), (1, 2), ((2, 0), (3, 4))),
    Window((4, 3), (3, 2), (2, 1), ((0, 0), (0, 0)), "SAME_UPPER"),
    Window((4, 3), (3, 2), (2, 1), ((0, 0), (0, 0)), "SAME_LOWER"),
    Window((2, 3), (1, 2), (1, 1), ((1, 1), (1, 1)), "VALID"),
]


def convolved(x, kernel, window):
    """The convolution as JAX computes it, with padding of that name where ONNX has one."""
    named = {"SAME_UPPER": "SAME", "SAME_LOWER": "SAME_LOWER", "VALID": "VALID"}
    padding = named.get(window.auto_pad, window.pads)
    return np.asarray(
        jax.lax.conv_general_dilated(
            x, kernel, window.strides, padding, rhs_dilation=window.dilations, precision="highest"
        )
    )


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_patches_times_weights_are_the_convolution(rng, window):
    size = (23, 17)[: len(window.taps)]
    x = rng.standard_normal((2, 3, *size)).astype(np.float32)
    kernel = rng.standard_normal((4, 3, *window.taps)).astype(np.float32)
    y = convolved(x, kernel, window)
    assert window.output_size(size) == y.shape[2:]
    everything = np.arange(y.size // 4)
    np.testing.assert_allclose(patches(x, window, everything) @ matrix(kernel), outputs_at(y, everything), atol=1e-4)
    some = rng.permutation(everything)[:5]
    np.testing.assert_array_equal(patches(x, window, some), patches(x, window, everything)[some])


@pytest.fixture
def layer(rng):
    """A layer of 16 features and 8 outputs."""
    w, b = rng.standard_normal((16, 8)).astype(np.float32), rng.standard_normal(8).astype(np.float32)
    return Layer("dense", w, b, is_patches=False)


def sampled(layer, rng, scale=1.0, error=0.0):
    """Samples 300 rows for training and 100 for the test, of four batches."""
    for split, count in (("train", 150), ("test", 50)):
        for _ in range(2):
            x = scale * rng.standard_normal((400, 16)).astype(np.float32)
            y = x @ layer.w + layer.b + error
            layer.sample(split, 400, 4, count, lambda at, x=x, y=y: (x[at], y[at]))
    return layer


@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e5])
def test_a_layer_becomes_halves_that_keep_its_outputs(rng, layer, scale):
    layer.b *= scale
    arrays = sampled(layer, rng, scale).arrays({"train": 250, "test": 100})
    assert {name: (a.shape, a.dtype) for name, a in arrays.items()} == {
        "x_train": ((250, 16), np.float16),
        "x_test": ((100, 16), np.float16),
        "w": ((16, 8), np.float16),
        "b": ((8,), np.float16),
    }
    assert layer.rows_of_inference == [100] * 4
    x, w, b = (arrays[name].astype(np.float32) for name in ("x_train", "w", "b"))
    y = np.concatenate(layer.rows["train"])[:250] @ layer.w + layer.b
    unit = b[0] / layer.b[0]
    np.testing.assert_allclose((x @ w + b) / unit, y, atol=0.02 * scale)


def test_layers_that_are_no_use_are_refused(rng, layer):
    known = set()
    assert why_not(layer.w, known) is None
    assert "earlier layer" in why_not(layer.w.copy(), known)
    assert "too small" in why_not(layer.w[:15], known)
    assert "too small" in why_not(layer.w[:, :7], known)
    with pytest.raises(UnusableError, match="differs from its outputs"):
        sampled(layer, rng, error=0.5).arrays({"train": 200, "test": 60})


def test_few_rows_are_refused_unless_few_are_wanted(rng, layer):
    sampled(layer, rng)
    layer.rows["train"] = [layer.rows["train"][0]]
    with pytest.raises(UnusableError, match="only 150 rows to train with"):
        layer.arrays({"train": 300, "test": 100})
    assert len(layer.arrays({"train": 20, "test": 10})["x_train"]) == 20


def test_names_of_files_are_plain_and_distinct():
    taken = set()
    names = [file_name("m", layer, taken) for layer in ("a/b:0", "a b.0", "a/b;0")]
    assert names == ["m__a-b-0.npz", "m__a-b.0.npz", "m__a-b-0-2.npz"]


def test_a_folder_is_harvested_and_its_index_is_kept(rng, layer, tmp_path, monkeypatch, capsys):
    class Runnable:
        """A model of one layer."""

        layers = (layer,)

        def run(self, feed, split, wanted):
            y = feed @ layer.w + layer.b
            layer.sample(split, len(feed), 2, wanted, lambda at: (feed[at], y[at]))

    def missing(example):
        raise ModuleNotFoundError("no such package")

    def feeds(split):
        return (rng.standard_normal((50, 16)).astype(np.float32) for _ in range(10))

    batches = {"train": 10, "test": 3}
    monkeypatch.setitem(
        models.MODELS, "tiny", models.Model("numbers", lambda _: Runnable(), feeds, batches, "synthetic")
    )
    monkeypatch.setitem(models.MODELS, "absent", models.Model("numbers", missing, feeds, batches, "synthetic"))
    arguments = ["--output", str(tmp_path), "--train", "240", "--test", "60"]
    harvest.main([*arguments, "--models", "tiny"])
    harvest.main([*arguments, "--models", "absent"])
    assert "absent is left out: no such package" in capsys.readouterr().err
    assert harvest.read_index(tmp_path) == [
        {"model": "tiny", "domain": "numbers", "inputs": "synthetic", "layer": "dense", "D": 16, "M": 8, "rows": 25,
         "train": 240, "test": 60, "conv": False, "file": "tiny__dense.npz"}
    ]  # fmt: skip
    with np.load(tmp_path / "tiny__dense.npz", allow_pickle=False) as file:
        assert set(file) == {"x_train", "x_test", "w", "b"}


def test_unknown_models_are_refused(capsys):
    with pytest.raises(SystemExit):
        harvest.main(["--models", "none"])
    assert "unknown models: none" in capsys.readouterr().err
