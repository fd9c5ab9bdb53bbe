"""The loader of ONNX graphs: every operation against NumPy, in both layouts; onnxruntime and models where installed."""

import importlib.util
import itertools
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

import jax_maddness
from examples.onnx_models import graph as graphs
from examples.onnx_models.graph import Graph, Node
from examples.onnx_models.module import OnnxModel, load
from examples.onnx_models.ops import OPS
from jax_maddness import Rule

rng = np.random.default_rng(0)
PICTURES = rng.standard_normal((2, 6, 5, 8)).astype(np.float32)
ROWS = rng.standard_normal((2, 3, 6)).astype(np.float32)
CHANNELS = [np.float32(rng.uniform(0.5, 1.5, 6)) for _ in range(4)]
SQUARE = rng.standard_normal((6, 6)).astype(np.float32)
UP = rng.standard_normal((6, 4, 2, 2)).astype(np.float32)


def ints(*values):
    return np.array(values, np.int64)


def number(value):
    return np.array(value, np.float32)


def windows(x, size, strides, pads, fill):
    """Yields the place of each output and the values that it sees."""
    x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:2], pads[2:], strict=True)], constant_values=fill)
    lengths = [(n - k) // s + 1 for n, k, s in zip(x.shape[2:], size, strides, strict=True)]
    for i, j in itertools.product(*map(range, lengths)):
        y = x[:, :, i * strides[0] : i * strides[0] + size[0], j * strides[1] : j * strides[1] + size[1]]
        yield i, j, y


def pool(function, fill=0.0, size=(3, 2), strides=(2, 2), pads=(0, 0, 0, 0)):
    out = {(i, j): function(y, axis=(2, 3)) for i, j, y in windows(PICTURES, size, strides, pads, fill)}
    i, j = max(out)
    return np.stack([np.stack([out[a, b] for b in range(j + 1)], -1) for a in range(i + 1)], -2)


def conv(x, w, strides=(1, 1), pads=(0, 0, 0, 0), group=1, dilations=(1, 1)):
    """A convolution of pictures, tap by tap."""
    spread = np.zeros((*w.shape[:2], *((k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True))))
    spread[:, :, :: dilations[0], :: dilations[1]] = w
    per, outs = x.shape[1] // group, len(w) // group
    out = {}
    for i, j, seen in windows(x, spread.shape[2:], strides, pads, 0.0):
        parts = [
            np.einsum("nchw,mchw->nm", seen[:, g * per : (g + 1) * per], spread[g * outs : (g + 1) * outs])
            for g in range(group)
        ]
        out[i, j] = np.concatenate(parts, 1)
    i, j = max(out)
    return np.stack([np.stack([out[a, b] for b in range(j + 1)], -1) for a in range(i + 1)], -2)


def transposed_conv(x, w, stride):
    n, _, height, width = x.shape
    y = np.zeros((n, w.shape[1], (height - 1) * stride + w.shape[2], (width - 1) * stride + w.shape[3]))
    for i, j in itertools.product(range(height), range(width)):
        part = np.einsum("nc,cmhw->nmhw", x[:, :, i, j], w)
        y[:, :, i * stride : i * stride + w.shape[2], j * stride : j * stride + w.shape[3]] += part
    return y


def normalized(x):
    gain, bias, mean, variance = (a[:, None, None] for a in CHANNELS)
    return (x - mean) / np.sqrt(variance + 0.01) * gain + bias


def exponentials(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def linear_twice(x):
    """Twice as wide, by the half-pixel rule."""
    place = (np.arange(16) + 0.5) / 2 - 0.5
    rows = x.reshape(-1, 8)
    return np.stack([np.interp(place, np.arange(8), row) for row in rows]).reshape(*x.shape[:3], 16)


P, R = PICTURES, ROWS
CASES = [
    ("Add", {}, [P, CHANNELS[0][:, None, None]], P + CHANNELS[0][:, None, None]),
    ("AveragePool", {"kernel_shape": [3, 2], "strides": [2, 2]}, [P], pool(np.mean)),
    (
        "AveragePool",
        {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]},
        [P],
        pool(np.nanmean, np.nan, pads=(1, 0, 1, 1)),
    ),
    ("BatchNormalization", {"epsilon": 0.01}, [P, *CHANNELS], normalized(P)),
    ("Cast", {"to": 7}, [R], R.astype(np.int64)),
    ("Clip", {}, [P, number(-0.5), number(1)], P.clip(-0.5, 1)),
    ("Concat", {"axis": 1}, [P, P[:, :2]], np.concatenate([P, P[:, :2]], 1)),
    ("ConvTranspose", {"strides": [2, 2]}, [P, UP], transposed_conv(P, UP, 2)),
    ("Div", {}, [P, number(6)], P / 6),
    ("Exp", {}, [P], np.exp(P)),
    ("Flatten", {}, [P], P.reshape(2, -1)),
    ("Gather", {"axis": 2}, [P, ints(3, 0, -1)], P[:, :, [3, 0, -1]]),
    ("Gemm", {"alpha": 0.5}, [R[0], SQUARE, CHANNELS[0]], 0.5 * R[0] @ SQUARE + CHANNELS[0]),
    ("GlobalAveragePool", {}, [P], P.mean((2, 3), keepdims=True)),
    ("HardSigmoid", {"alpha": 0.25}, [P], (0.25 * P + 0.5).clip(0, 1)),
    ("Identity", {}, [P], P),
    ("LeakyRelu", {"alpha": 0.1}, [P], np.where(P < 0, 0.1 * P, P)),
    ("MatMul", {}, [P[:, :, :3], P.swapaxes(2, 3)], P[:, :, :3] @ P.swapaxes(2, 3)),
    ("MaxPool", {"kernel_shape": [3, 2], "strides": [2, 2]}, [P], pool(np.max)),
    ("Mul", {}, [P, P.mean((2, 3), keepdims=True)], P * P.mean((2, 3), keepdims=True)),
    ("Pow", {}, [P, number(2)], P**2),
    ("ReduceMax", {"axes": [1], "keepdims": 0}, [P], P.max(1)),
    ("ReduceMean", {"axes": [-1, 1]}, [P], P.mean((-1, 1), keepdims=True)),
    ("ReduceSum", {}, [P, ints(2)], P.sum(2, keepdims=True)),
    ("Relu", {}, [P], P.clip(0)),
    ("Reshape", {}, [P, ints(0, -1, 4)], P.reshape(2, -1, 4)),
    (
        "Resize",
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        [P, "", np.array([1, 1, 2, 3], np.float32)],
        P.repeat(2, 2).repeat(3, 3),
    ),
    ("Resize", {"mode": "linear"}, [P, "", "", ints(2, 6, 5, 16)], linear_twice(P)),
    ("Shape", {}, [P], ints(2, 6, 5, 8)),
    ("Sigmoid", {}, [P], 1 / (1 + np.exp(-P))),
    ("Slice", {}, [P, ints(1, -1), ints(2**60, -(2**60)), ints(1, 3), ints(2, -2)], P[:, 1::2, :, ::-2]),
    ("Softmax", {"axis": 1}, [P], exponentials(P, 1)),
    ("Softmax", {"axis": -1}, [P], exponentials(P, 3)),
    ("Sqrt", {}, [P * P], np.abs(P)),
    ("Squeeze", {}, [P[:, :, :1], ints(2)], P[:, :, 0]),
    ("Sub", {}, [number(1), P], 1 - P),
    ("Tanh", {}, [P], np.tanh(P)),
    ("Transpose", {"perm": [3, 0, 2, 1]}, [P], P.transpose(3, 0, 2, 1)),
    ("Unsqueeze", {}, [P, ints(1)], P[:, None]),
]
IDS = [f"{op}{number}" for number, (op, *_) in enumerate(CASES)]


def weights(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


CONVS = {
    "3x3": (weights(4, 6, 3, 3), {}),
    "strided and padded": (weights(4, 6, 3, 3), {"strides": (2, 1), "pads": (1, 0, 2, 1)}),
    "depthwise": (weights(6, 1, 3, 3), {"group": 6, "pads": (1, 1, 1, 1)}),
    "groups": (weights(4, 3, 1, 3), {"group": 2}),
    "dilated": (weights(4, 6, 2, 2), {"dilations": (2, 3)}),
    "1x1": (weights(4, 6, 1, 1), {}),
}


def chain(*steps):
    """A graph of nodes one after the other, each with constants: (op, attributes, constants)."""
    nodes, constants, last = [], {}, "x"
    for i, (op, attributes, values) in enumerate(steps):
        names = [f"c{i}_{j}" if isinstance(value, np.ndarray) else "" for j, value in enumerate(values)]
        constants |= {name: value for name, value in zip(names, values, strict=True) if name}
        nodes.append(Node(op, (last, *names), f"y{i}", attributes))
        last = f"y{i}"
    return Graph(tuple(nodes), constants, ("x",), (last,))


def of_case(op, attributes, tensors):
    """The graph of a case; of constants and the input, the input may be second."""
    if tensors[0].ndim == 0:
        return Graph((Node(op, ("c", "x"), "y", attributes),), {"c": tensors[0]}, ("x",), ("y",)), tensors[1]
    return chain((op, attributes, tensors[1:])), tensors[0]


def run(model, x):
    """Runs a model compiled, as `plan` does."""
    graph, state = nnx.split(model)
    return np.asarray(jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, x))


def test_every_operation_has_a_case():
    assert {op for op, *_ in CASES} == OPS.keys()


@pytest.mark.parametrize(("op", "attributes", "tensors", "expected"), CASES, ids=IDS)
def test_an_operation_is_what_it_is_in_numpy(op, attributes, tensors, expected):
    graph, x = of_case(op, attributes, tensors)
    np.testing.assert_allclose(run(OnnxModel(graph), x), expected, rtol=1e-5, atol=1e-5)


OF_PICTURES = [
    i for i, (op, attributes, tensors, _) in enumerate(CASES) if of_case(op, attributes, tensors)[1].ndim == 4
]


@pytest.mark.parametrize("case", OF_PICTURES, ids=[IDS[i] for i in OF_PICTURES])
def test_an_operation_is_the_same_with_channels_last(case):
    """After a convolution that changes nothing, so that its result is stored with the channels last."""
    op, attributes, tensors, expected = CASES[case]
    graph, x = of_case(op, attributes, tensors)
    same = np.eye(x.shape[1], dtype=np.float32)[:, :, None, None]
    after = [
        Node(n.op, tuple("same" if name == "x" else name for name in n.inputs), n.output, n.attributes)
        for n in graph.nodes
    ]
    nodes = (Node("Conv", ("x", "eye"), "same"), *after)
    graph = Graph(nodes, {**graph.constants, "eye": same}, ("x",), graph.outputs)
    np.testing.assert_allclose(run(OnnxModel(graph), x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("w", "attributes"), CONVS.values(), ids=CONVS.keys())
def test_a_convolution_is_a_layer_of_flax(w, attributes):
    model = OnnxModel(chain(("Conv", attributes, [w, weights(len(w))])))
    np.testing.assert_allclose(
        run(model, P), conv(P, w, **attributes) + weights(len(w))[:, None, None], rtol=1e-4, atol=1e-4
    )
    assert isinstance(model.products["conv0"], nnx.Conv)


def test_same_padding_puts_the_larger_part_last():
    w = weights(4, 6, 3, 3)
    model = OnnxModel(chain(("Conv", {"auto_pad": "SAME_UPPER", "strides": (2, 2)}, [w])))
    expected = conv(P, w, (2, 2), (1, 0, 1, 1))
    np.testing.assert_allclose(run(model, P), expected, rtol=1e-4, atol=1e-4)


def test_constants_after_a_product_are_folded_into_it():
    w, factor, shift = weights(6, 6, 1, 1), number([2.0]), CHANNELS[0].reshape(1, 6, 1, 1)
    steps = [("Conv", {}, [w]), ("BatchNormalization", {"epsilon": 0.01}, CHANNELS), ("Mul", {}, [factor])]
    graph = graphs.folded(chain(*steps, ("Add", {}, [shift]), ("Relu", {}, []), ("Mul", {}, [factor])))
    assert [node.op for node in graph.nodes] == ["Conv", "Relu", "Mul"]
    expected = 2 * (2 * normalized(conv(P, w)) + shift).clip(0)
    np.testing.assert_allclose(run(OnnxModel(graph), P), expected, rtol=1e-4, atol=1e-4)
    rows = graphs.folded(
        chain(("Gemm", {"transB": 1}, [SQUARE[:4]]), ("Sub", {}, [CHANNELS[0][:4]]), ("Div", {}, [factor]))
    )
    assert [node.op for node in rows.nodes] == ["Gemm"]
    np.testing.assert_allclose(
        run(OnnxModel(rows), R[0]), (R[0] @ SQUARE[:4].T - CHANNELS[0][:4]) / 2, rtol=1e-4, atol=1e-4
    )


def test_what_is_not_per_output_or_read_twice_is_not_folded():
    wide = weights(1, 6, 1, 8)
    graph = chain(("Conv", {}, [weights(6, 6, 1, 1)]), ("Add", {}, [wide]))
    assert len(graphs.folded(graph).nodes) == 2
    nodes = (
        Node("MatMul", ("x", "w"), "y"),
        Node("Add", ("y", "b"), "z"),
        Node("Mul", ("y", "z"), "out"),
    )
    graph = Graph(nodes, {"w": SQUARE, "b": CHANNELS[0]}, ("x",), ("out",))
    assert len(graphs.folded(graph).nodes) == 3
    np.testing.assert_allclose(run(OnnxModel(graph), R), R @ SQUARE * (R @ SQUARE + CHANNELS[0]), rtol=1e-4, atol=1e-4)


def test_shapes_are_known_while_the_model_is_traced():
    """A reshape to lengths that are computed from the shape of the input, as exporters write it."""
    nodes = (
        Node("Shape", ("x",), "shape"),
        Node("Slice", ("shape", "zero", "one"), "batch"),
        Node("Cast", ("batch",), "long", {"to": 7}),
        Node("Concat", ("long", "rest"), "lengths", {"axis": 0}),
        Node("Reshape", ("x", "lengths"), "y"),
    )
    graph = Graph(nodes, {"zero": ints(0), "one": ints(1), "rest": ints(-1)}, ("x",), ("y",))
    np.testing.assert_array_equal(run(OnnxModel(graph), P), P.reshape(2, -1))


def test_what_is_not_supported_is_named():
    with pytest.raises(NotImplementedError, match="Einsum, Mod"):
        OnnxModel(chain(("Mod", {}, [P]), ("Einsum", {}, [])))
    with pytest.raises(NotImplementedError, match="ceil_mode"):
        run(OnnxModel(chain(("MaxPool", {"kernel_shape": [2, 2], "ceil_mode": 1}, []))), P)
    nodes = (Node("Cast", ("x",), "n", {"to": 7}), Node("Reshape", ("x", "n"), "y"))
    of_values = OnnxModel(Graph(nodes, {}, ("x",), ("y",)))
    with pytest.raises(NotImplementedError, match="depends on the values"):
        run(of_values, P)


def test_layers_are_found_and_replaced():
    steps = [("Conv", {}, [weights(8, 6, 1, 1)]), ("Relu", {}, []), ("Conv", {"group": 8}, [weights(8, 1, 2, 2)])]
    model = OnnxModel(
        chain(*steps, ("GlobalAveragePool", {}, []), ("Flatten", {}, []), ("MatMul", {}, [weights(8, 5)]))
    )
    difference = jax_maddness.replace(model, Rule(".*", num_codebooks=4), [P], dry_run=True)
    assert [change.path for change in difference.changes] == ["products/conv0", "products/conv1", "products/linear2"]
    exact = jax_maddness.replace(model, Rule(".*conv.*", product="rewritten"), [P], progress=False)
    np.testing.assert_allclose(run(exact, P), run(model, P), rtol=1e-4, atol=1e-4)


def in_onnx(graph, x):
    """The graph in a file of ONNX."""
    import onnx
    from onnx import helper, numpy_helper

    nodes = [helper.make_node(n.op, list(n.inputs), [n.output], **n.attributes) for n in graph.nodes]
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)]
    outputs = [onnx.ValueInfoProto(name=name) for name in graph.outputs]
    initial = [numpy_helper.from_array(array, name) for name, array in graph.constants.items()]
    made = helper.make_graph(nodes, "graph", inputs, outputs, initial)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("version", [11, 13])
@pytest.mark.parametrize("axis", [None, 1, 2])
def test_a_softmax_is_that_of_the_version_of_the_operations(version, axis):
    """Before version 13 it is along all axes from `axis` on, by default from the second one."""
    onnx = pytest.importorskip("onnx")
    model = in_onnx(chain(("Softmax", {} if axis is None else {"axis": axis}, [])), R)
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", version))
    axes = tuple(range(1 if axis is None else axis, 3)) if version < 13 else -1 if axis is None else axis
    exponentials = np.exp(R)
    np.testing.assert_allclose(run(load(model), R), exponentials / exponentials.sum(axes, keepdims=True), rtol=1e-5)


def in_onnxruntime(model, *inputs):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([one.name for one in session.get_inputs()], inputs, strict=True)))[0]


@pytest.mark.parametrize(("op", "attributes", "tensors", "expected"), CASES, ids=IDS)
def test_onnxruntime_agrees(op, attributes, tensors, expected):
    pytest.importorskip("onnx")
    graph, x = of_case(op, attributes, tensors)
    model = in_onnx(graph, x)
    np.testing.assert_allclose(in_onnxruntime(model, x), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run(load(model), x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ch_PP-OCRv4_rec_infer", "ch_PP-OCRv4_det_infer", "ch_ppocr_mobile_v2.0_cls_infer"])
def test_models_of_text_are_those_of_onnxruntime(name):
    onnx = pytest.importorskip("onnx")
    package = importlib.util.find_spec("rapidocr_onnxruntime")
    if package is None or not package.submodule_search_locations:
        pytest.skip("The models are not installed: `make example-ocr` does.")
    model = onnx.load(pathlib.Path(package.submodule_search_locations[0]) / "models" / f"{name}.onnx")
    x = np.random.default_rng(0).uniform(-1, 1, (2, 3, *((64, 96) if "det" in name else (48, 192)))).astype(np.float32)
    np.testing.assert_allclose(run(load(model), x), in_onnxruntime(model, x), atol=1e-4)
