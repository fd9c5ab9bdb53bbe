"""NMSE of `fit` on a folder of problems, against the original implementation's float tables.

    python benchmarks/quality.py --problems FOLDER [--codebooks 4,8,16,32,64] [--json OUT]

A problem is an `.npz` with `x_train`, `x_test`, `w` and perhaps `b`; `reference_nmse.json` beside them has the
original's `nmse_floatlut`. NMSE = |Y - Y_hat|^2 / |Y - mean_train(Y)|^2 over `x_test`, through the 8-bit tables.
"""

import argparse
import json
import pathlib
import time

import numpy as np

import jax_maddness
from jax_maddness.learn.fit import FitConfig, fit


def load(path):
    """x_train, x_test, w, b in float32."""
    with np.load(path, allow_pickle=False) as file:
        w = file["w"].astype(np.float32)
        b = file["b"].astype(np.float32) if "b" in file else np.zeros(w.shape[1], np.float32)
        return file["x_train"].astype(np.float32), file["x_test"].astype(np.float32), w, b


def nmse(op, x_train, x_test, w, b):
    """Squared error of `op` on `x_test`, relative to that of predicting the training rows' mean output."""
    exact = x_test @ w + b
    centre = x_train.mean(0, dtype=np.float64) @ w + b
    error = np.asarray(jax_maddness.amm(x_test, op), np.float64) - exact
    return float((error**2).sum() / ((exact - centre) ** 2).sum())


def measure(problems, codebooks, config):
    """One record per problem and number of codebooks, where there is a feature for each."""
    reference = json.loads((problems / "reference_nmse.json").read_text())
    for path in sorted(problems.glob("*.npz")):
        data = load(path)
        by_codebooks = reference.get(path.stem, {}).get("by_codebooks", {})
        for c in (c for c in codebooks if c <= data[0].shape[1]):
            start = time.perf_counter()
            op = fit(data[0], data[2], data[3], num_codebooks=c, config=config, progress=False)
            seconds = time.perf_counter() - start
            record = {"problem": path.stem, "codebooks": c, "nmse": nmse(op, *data), "fit_seconds": round(seconds, 2)}
            if str(c) in by_codebooks:
                record["reference"] = by_codebooks[str(c)]["nmse_floatlut"]
                record["ratio"] = record["nmse"] / record["reference"]
            yield record


def markdown(records, codebooks):
    """One row per problem: NMSE and, in brackets, its ratio to the reference."""
    lines = ["| problem | " + " | ".join(f"C = {c}" for c in codebooks) + " |", "|---" * (len(codebooks) + 1) + "|"]
    for problem in dict.fromkeys(r["problem"] for r in records):
        cells = {r["codebooks"]: r for r in records if r["problem"] == problem}
        row = [f"{cells[c]['nmse']:.4f} ({cells[c].get('ratio', np.nan):.3f})" if c in cells else "" for c in codebooks]
        lines.append(f"| {problem} | " + " | ".join(row) + " |")
    ratios = np.array([r["ratio"] for r in records if "ratio" in r])
    summary = f"{len(ratios)} ratios to the reference: worst {ratios.max():.3f}, "
    return "\n".join([*lines, "", summary + f"geometric mean {np.exp(np.log(ratios).mean()):.3f}"])


def main():
    """Prints the table; writes the records as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=pathlib.Path, required=True)
    parser.add_argument("--codebooks", type=lambda s: [int(c) for c in s.split(",")], default=[4, 8, 16, 32, 64])
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    config = FitConfig()
    records = list(measure(arguments.problems, arguments.codebooks, config))
    print(markdown(records, arguments.codebooks))
    if arguments.json:
        arguments.json.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
