"""Collects layers of pretrained models, with rows that they see: `python -m benchmarks.layers.harvest`.

Each layer becomes a file with `x_train`, `x_test`, `w` and, if it has one, `b`, all float16, such that the layer
computes `x @ w + b`; where the numbers would not fit float16, all of them are scaled by powers of two. `index.json`
lists the files, with the number of rows of one inference. Rows of training and of the test come from different inputs.
Layers that are left out are named on stderr, with the reason. `make` installs what this needs as the stamp `.harvest`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.layers.models import MODELS, Model, Runnable
from benchmarks.layers.sampled import SPLITS, Layer, UnusableError, file_name, save

INDEX = "index.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    options = parse(arguments)
    folder: pathlib.Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    limits = {"train": options.train, "test": options.test}
    records = [r for r in read_index(folder) if r["model"] not in options.models]
    for name in options.models:
        start = time.perf_counter()
        for stale in folder.glob(f"{name}__*.npz"):
            stale.unlink()
        try:
            harvested = harvest(name, MODELS[name], limits, folder)
        except ModuleNotFoundError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        records += harvested
        write_index(folder, records)
        print(f"{name}: {len(harvested)} layers in {time.perf_counter() - start:.0f} s", flush=True)
    if not records:
        sys.exit("No layer was harvested.")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the options; unknown models are an error."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers.harvest", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/layers/harvest"), metavar="FOLDER")
    parser.add_argument("--models", type=lambda names: names.split(","), default=list(MODELS), metavar="A,B",
                        help=f"which models, the others' layers stay as they are; of {', '.join(MODELS)}")  # fmt: skip
    parser.add_argument("--train", type=int, default=2000, metavar="N", help="greatest number of rows of training")
    parser.add_argument("--test", type=int, default=600, metavar="N", help="greatest number of rows of the test")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.models) - MODELS.keys())
    if unknown:
        parser.error(f"unknown models: {', '.join(unknown)}; there are {', '.join(MODELS)}")
    if options.train < 1 or options.test < 1:
        parser.error("there must be rows")
    return options


def read_index(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the records of a folder, none if it has no index."""
    index = folder / INDEX
    return json.loads(index.read_text()) if index.exists() else []


def write_index(folder: pathlib.Path, records: Sequence[dict[str, Any]]) -> None:
    """Writes the records of a folder."""
    (folder / INDEX).write_text(json.dumps(records, indent=1) + "\n")


def harvest(name: str, model: Model, limits: dict[str, int], folder: pathlib.Path) -> list[dict[str, Any]]:
    """Writes the layers of a model to a folder and returns their records."""
    runnable = model.load(next(iter(model.feeds("train"))))
    for split in SPLITS:
        _run(runnable, model, split, limits[split])
    records, taken = [], set[str]()
    for layer in runnable.layers:
        try:
            arrays = layer.arrays(limits)
        except UnusableError as reason:
            print(f"{name}: {layer.name} is left out: {reason}.", file=sys.stderr)
            continue
        file = file_name(name, layer.name, taken)
        save(folder, file, arrays)
        records.append(_record(name, model, layer, arrays, file))
    return records


def _run(runnable: Runnable, model: Model, split: str, limit: int) -> None:
    """Runs a model on as many inputs as it has for a split, or as rows are wanted."""
    batches = min(model.batches[split], limit)
    for feed in itertools.islice(model.feeds(split), batches):
        runnable.run(feed, split, math.ceil(limit / batches))


def _record(name: str, model: Model, layer: Layer, arrays: dict[str, np.ndarray], file: str) -> dict[str, Any]:
    return {
        "model": name,
        "domain": model.domain,
        "inputs": model.inputs,
        "layer": layer.name,
        "D": layer.w.shape[0],
        "M": layer.w.shape[1],
        "rows": int(statistics.median(layer.rows_of_inference)),
        "train": len(arrays["x_train"]),
        "test": len(arrays["x_test"]),
        "conv": layer.is_patches,
        "file": file,
    }


if __name__ == "__main__":
    main()
