"""`resumed`: goes on with a plan in a file, if it is one for the same purpose."""

from __future__ import annotations

from typing import Any

from jax_maddness.nn import fingerprint
from jax_maddness.nn.planning.report import Plan


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
