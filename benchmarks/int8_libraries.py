"""int8 products of other libraries, where these are installed: torch, ONNX Runtime and OpenVINO.

    taskset -c 1 python -m benchmarks.int8_libraries [--shapes 8192x1024x1024,1000x768x3072] [--seconds 20] [--save]

The command times them on random rows and weights beside XLA's f32 and int8 products and ours (`FitConfig("int8")`), in
interleaved rounds, with freed memory retained, and prints a table of milliseconds and of ratios to ours. Each library
is used as its own documentation says: torch's and ONNX Runtime's dynamic quantization, OpenVINO's static one.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_maddness
from benchmarks import measured, timing
from benchmarks.contenders import Contender, int8_columns, int8_dynamic, run, torch_linear
from benchmarks.records import Record
from jax_maddness import FitConfig

SHAPES = "8192x1024x1024,1000x768x3072,10000x512x100"
"""Rows x D x M."""
OURS = "ours"
Linear = Callable[[np.ndarray], Any]
"""A function of f32 rows `[N, D]` that computes a quantized product."""


def onnxruntime_linear(w: np.ndarray, threads: int) -> Linear | None:
    """Returns ONNX Runtime's dynamically quantized product with `w [D, M]`; None if it or onnx is not installed."""
    if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnx") is None:
        return None
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    step = np.abs(w).max() / 127
    constants = {"w": np.rint(w / step).astype(np.int8), "zero": np.int8(0), "step": np.float32(step)}
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["x8", "x_step", "x_zero"]),
        helper.make_node("MatMulInteger", ["x8", "w", "x_zero", "zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["exact"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x_step", "step"], ["scale"]),
        helper.make_node("Mul", ["exact", "scale"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, w.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, w.shape[1]])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})[0]


def openvino_linear(w: np.ndarray, threads: int, limit: float = 6.0) -> Linear | None:
    """Returns OpenVINO's product of rows, rounded to int8 within `limit`, with `w [D, M]`; None without OpenVINO."""
    if importlib.util.find_spec("openvino") is None:
        return None
    import openvino
    from openvino import opset13 as ops

    x = ops.parameter([-1, w.shape[0]], np.float32, name="x")
    low, high = np.float32(-limit), np.float32(limit * 127 / 128)
    rounded = ops.fake_quantize(x, low, high, low, high, 256)
    step = (np.abs(w).max(0) / 127).astype(np.float32)
    w8 = ops.constant(np.rint(w / step).astype(np.int8))
    weights = ops.multiply(ops.convert(w8, np.float32), ops.constant(step[None]))
    model = openvino.Model([ops.matmul(rounded, weights, False, False)], [x])
    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.compile_model(model, "CPU", options).create_infer_request()
    return lambda x: request.infer([x], share_inputs=True, share_outputs=True)


def contenders(x: np.ndarray, w: np.ndarray, threads: int) -> Iterator[Contender]:
    """Yields XLA's products, ours, and those of the libraries that are installed."""
    rows, weights = jnp.asarray(x), jnp.asarray(w)
    op = jax_maddness.fit(x[:2000], w, num_codebooks=0, config=FitConfig("int8"), progress=False)
    yield Contender(OURS, "amm", run(jax_maddness.amm, rows, op))
    yield Contender("XLA f32", "rival", run(jnp.matmul, rows, weights))
    yield Contender("XLA int8", "rival", run(int8_dynamic, rows, *int8_columns(weights)))
    for name, linear in (
        ("ONNX Runtime", onnxruntime_linear(w, threads)),
        ("OpenVINO", openvino_linear(w, threads)),
        ("torch", _torch(w, threads)),
    ):
        if linear is not None:
            yield Contender(name, "rival", lambda linear=linear: linear(x))  # type: ignore[misc]


def _torch(w: np.ndarray, threads: int) -> Linear | None:
    linear = torch_linear(w, threads)
    if linear is None:
        return None
    import torch

    def call(x: np.ndarray) -> Any:
        with torch.inference_mode():
            return linear(torch.from_numpy(x))

    return call


def table(records: Sequence[Record]) -> str:
    """Returns a row for each shape: milliseconds, and in brackets the time relative to ours."""
    names = list(dict.fromkeys(r["product"] for r in records))
    lines = [f"| rows x D x M | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for shape in dict.fromkeys(r["shape"] for r in records):
        own = {r["product"]: r for r in records if r["shape"] == shape}
        cells = [f"{own[name]['ms']:.3g}" + f" ({own[name]['ratio']:.2f})" * (name != OURS) for name in names]
        lines.append(f"| {shape.replace('x', ' x ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=SHAPES, help="rows x D x M")
    parser.add_argument("--seconds", type=float, default=20, help="of timing, for each shape")
    measured.add_option(parser)
    args = parser.parse_args(argv)
    this_run, records = measured.Run("int8_libraries", argv), list[Record]()
    jax_maddness.retain_freed_memory()
    for shape in args.shapes.split(","):
        rows, features, outputs = map(int, shape.split("x"))
        rng = np.random.default_rng(0)
        x, w = (rng.standard_normal(size, np.float32) for size in ((rows, features), (features, outputs)))
        entrants = list(contenders(x, w, len(os.sched_getaffinity(0))))
        figures = timing.interleaved(entrants, seconds=args.seconds, rounds=(5, 40))
        for entrant, own in zip(entrants, figures, strict=True):
            ratio = statistics.median(a / b for a, b in zip(own, figures[0], strict=True))
            records.append({"shape": shape, "product": entrant.what, "ms": statistics.median(own), "ratio": ratio})
    this_run.finish(records, table(records), save=args.save)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
