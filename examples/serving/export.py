"""Exports a Flax classifier whose hidden layers were replaced: one file that needs neither Flax nor the model's code.

    python -m examples.serving.export build/serving

trains a small classifier of digits, replaces its hidden layers, and writes to build/serving

    classifier.jax                the module: StableHLO with all weights, for any number of rows
    classifier.executable         the same, compiled for batches of 64 rows by this jaxlib for this processor
    pixels.npy, outputs.npy       test rows, and the module's outputs for them in this process

`serve.py` runs it in another process. `make example-serving` does both, and measures the ways to start.
"""

from __future__ import annotations

import argparse
import pathlib
import pickle

import jax
import numpy as np
from flax import nnx
from jax import export
from jax.experimental import serialize_executable

import jax_maddness
from examples import digits
from jax_maddness import FitConfig, Rule

RULES = (
    Rule("hidden/0", num_codebooks=32, config=FitConfig("paper")),
    Rule("hidden/1", num_codebooks=128, config=FitConfig("paper")),
)
BATCH = 64
"""Rows of the executable, whose shapes are fixed."""


def exported(model: nnx.Module, features: int) -> export.Exported:
    """Returns the module of `model`, with its weights as constants, for any number of rows."""
    graph, state = nnx.split(model)

    def forward(x: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(x)

    (rows,) = export.symbolic_shape("rows")
    checks = jax_maddness.disabled_export_checks()
    return export.export(jax.jit(forward), disabled_checks=checks)(jax.ShapeDtypeStruct((rows, features), "float32"))


def write(folder: pathlib.Path, module: export.Exported, x: jax.Array) -> None:
    """Writes the module, an executable, the rows `x`, and the outputs for them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classifier.jax").write_bytes(module.serialize())
    compiled = jax.jit(module.call).lower(jax.ShapeDtypeStruct((BATCH, x.shape[1]), x.dtype)).compile()
    (folder / "classifier.executable").write_bytes(pickle.dumps(serialize_executable.serialize(compiled)))
    np.save(folder / "pixels.npy", x)
    np.save(folder / "outputs.npy", jax.jit(module.call)(x))


def main() -> None:
    """Trains, replaces, exports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="where to write")
    parser.add_argument("--steps", type=int, default=200, help="training steps of the classifier")
    args = parser.parse_args()
    x_train, y_train, x_test, y_test = digits.load_data()
    model = digits.train(x_train, y_train, args.steps)
    fast = jax_maddness.replace(model, RULES, [x_train])
    write(args.folder, exported(fast, x_test.shape[1]), x_test)
    accuracies = [float((m(x_test).argmax(-1) == y_test).mean()) for m in (model, fast)]
    print("test accuracy: exact {:.4f}, replaced {:.4f}".format(*accuracies))
    for path in sorted(args.folder.glob("classifier.*")):
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
