"""`Plan`: the result of `plan`, as a table, as JSON, and as one HTML page."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
from typing import Any

from jax_maddness.core.atomic import path_name, replace_file, validate_regular
from jax_maddness.core.restore import restored
from jax_maddness.learn.config import FitConfig
from jax_maddness.nn.layers.kinds import CODES
from jax_maddness.nn.planning import page, summary
from jax_maddness.nn.planning.record import Record
from jax_maddness.nn.rules import Rule

_FORMAT, _VERSION = "jax_maddness.plan", 8
"""Version 3 added `LayerPlan.unmeasured`, version 4 `Plan.fingerprint`, version 5 `Trial.measured` and factors,
version 6 `Plan.held_out`, `Plan.measured_ms` and `LayerPlan.one_hot`, version 7 `Plan.refits` and
`Plan.rest_ms`, version 8 `Plan.examples`; older files are read, too."""
_READABLE = (2, 3, 4, 5, 6, 7, 8)


@dataclasses.dataclass
class Plan(Record):
    """The measurements and decisions of `plan`: `print` it, write it as a page, pass it to `replace`.

    The attributes are those of `Record`.
    """

    def rules(self) -> list[Rule]:
        """Returns rules, with exact paths, that replace the layers of the plan, and no others."""
        rules = []
        for layer in self.replaced:
            assert layer.choice is not None
            fields = {**self.how[layer.name], "num_codebooks": None, **rule_fields(layer.by, layer.choice)}
            fields["config"] = FitConfig(**fields["config"])
            rules += [Rule(re.escape(path), **fields) for path in layer.paths]
        return rules

    def __str__(self) -> str:
        return "\n".join([*summary.headline(self), "", *summary.table(self), "", *summary.totals(self)])

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan without its replacements, as a whole or not at all.

        Raises:
          TypeError: `path` is not a path.
          ValueError: `path` is something other than a file, such as a folder.
          OSError: The file cannot be written; an existing file is unchanged.
        """
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.compare}
        fields |= {name: [dataclasses.asdict(item) for item in fields[name]] for name in ("layers", "trials", "refits")}
        text = json.dumps({"format": _FORMAT, "version": _VERSION} | fields, indent=1)
        replace_file(path, lambda file: file.write(text.encode()))

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Plan:
        """Reads a plan that `to_json` wrote.

        Raises:
          TypeError: `path` is not a path.
          OSError: There is no such file, or it cannot be opened.
          ValueError: The file is of another kind, damaged, or newer.
        """
        name = path_name(path)
        validate_regular(os.stat(name), name)
        try:
            fields = json.loads(pathlib.Path(name).read_text(encoding="utf-8"))
        except (ValueError, RecursionError):  # not JSON, or not text
            fields = None
        header = (fields.pop("format", None), fields.pop("version", None)) if isinstance(fields, dict) else None
        if header not in [(_FORMAT, version) for version in _READABLE]:
            raise ValueError(f"{name!r} was not written by this version's `Plan.to_json`.")
        try:
            for line in fields["layers"]:
                # Files of version 2 have no such field; their words are the only record of it.
                line.setdefault("unmeasured", "the time was up" in line["words"])
            plan = restored(cls, fields, "plan")
            plan.rules(), str(plan), page.page(plan)  # whatever else is wrong with it must not wait until it is used
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{name!r} is a damaged plan: {error!r}. Make it anew with `plan`.") from error
        return plan

    def html(self, path: str | os.PathLike[str]) -> None:
        """Writes one self-contained page with the table and pictures, as a whole or not at all.

        Raises:
          TypeError: `path` is not a path.
          ValueError: `path` is something other than a file, such as a folder.
          OSError: The file cannot be written; an existing file is unchanged.
        """
        replace_file(path, lambda file: file.write(page.page(self).encode()))


def rule_fields(kind: str, size: int) -> dict[str, Any]:
    """Returns the fields of a `Rule` for a product of this kind and size."""
    if kind == CODES:
        return {"product": kind, "num_codebooks": size}
    return {"product": kind, "rank": size or None, "exact_rows": 0.0, "num_candidates": None}
