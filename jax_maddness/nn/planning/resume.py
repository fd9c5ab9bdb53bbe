"""`resumed`: goes on with a plan in a file, if it is one for the same purpose, as fingerprints tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax_maddness.nn import fingerprint
from jax_maddness.nn.models.model import Model
from jax_maddness.nn.planning.record import HELD_OUT, WEIGHTS
from jax_maddness.nn.planning.report import Plan
from jax_maddness.nn.planning.score import Metric


def fingerprint_of(
    model: Model,
    batches: Sequence[Any],
    held_out: Sequence[Any] | None,
    metric: Metric | None,
    max_rows: int,
    max_bytes: int,
) -> dict[str, str]:
    """Returns the fingerprints of what decides the measurements, beside the rules and the machine."""
    found = fingerprint.versions(python=metric is not None)
    found |= {"`max_rows`": str(max_rows), "`max_bytes`": str(max_bytes)}
    found[WEIGHTS] = fingerprint.of_arrays(model.weights())
    found["code of `model`"], _ = fingerprint.of_program(model.outputs, model.arrays(), batches[0])
    found["`batches`"] = fingerprint.of_batches(batches)
    if held_out is not None:  # plans of earlier versions, which had no `held_out`, can be continued without it
        found[HELD_OUT] = fingerprint.of_batches(held_out)
    return found | ({} if metric is None else {"`metric`": fingerprint.of_function(metric)})


def resumed(old: Plan, fresh: Plan) -> Plan:
    """Returns `old`, if it is a plan for the purpose of `fresh`.

    Raises:
      ValueError: It is a plan for another one.
    """

    def purpose(plan: Plan) -> dict[str, Any]:
        lines = [(line.name, line.paths, line.kind, line.shape, line.rows, line.products) for line in plan.layers]
        return {"layers": lines, "rules": plan.how, "metric": plan.metric, "machine": plan.machine}

    before, now = purpose(old), purpose(fresh)
    for name, value in now.items():
        if before[name] != value:
            raise ValueError(
                f"`path` has a plan for another model, or made otherwise: {name} were {before[name]}, but are {value}. "
                "Pass another `path`, or delete that file."
            )
    if not old.fingerprint:
        raise ValueError(
            "`path` has a plan of an earlier version, which did not record what it was measured on: it cannot be told "
            "whether it is for another model. It was left as it is, and `replace` takes it. Pass another `path`."
        )
    if different := fingerprint.differences(old.fingerprint, fresh.fingerprint):
        raise ValueError(
            f"`path` has a plan for another model, or made otherwise: it was measured with other {different}. It was "
            "left as it is. Pass what it was measured with, or another `path`."
        )
    if old.max_drop != fresh.max_drop:  # the measurements do not depend on it, the verdicts do
        old.max_drop, old.finished = fresh.max_drop, False
    return old
