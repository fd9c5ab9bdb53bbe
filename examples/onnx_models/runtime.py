"""The same graph in ONNX Runtime, to compare with, where that is installed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np


def in_onnxruntime(model: str | os.PathLike[str] | bytes) -> Callable[[Any], np.ndarray] | None:
    """Returns a model as a function of its input to its first output, with one thread; None without the package."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (x,) = session.get_inputs()
    return lambda values: session.run(None, {x.name: np.asarray(values)})[0]
