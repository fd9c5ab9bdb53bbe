"""`CostModel`, the time of a call of `amm` as a sum of its parts, measured once on a machine and kept in a file.

    seconds a row = row + D feature + M output                          reading x, writing y
                  + C tree + 4 C width projection + C M look_up         codes
                  + D rounding + r (D + M) factor                       factors, which round x to int8
                  + D M int8                                            a whole product in int8
                  + D M exact                                           XLA's product in float32, in place of all these

It tells mixes of codes and factors apart; it leaves out what caches do. `measure_costs` fits it to some twenty shapes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jax_maddness.core import arguments, ffi
from jax_maddness.core.atomic import replace_file
from jax_maddness.core.int8 import GROUP
from jax_maddness.core.machine import processor, threads
from jax_maddness.core.restore import restored
from jax_maddness.learn.config import FitConfig
from jax_maddness.learn.data.modes import modes
from jax_maddness.learn.progress import Progress
from jax_maddness.learn.sizes import least_seconds, placeholder, seconds_of

FORMAT = 1
"""Version of the file. Files of others are measured anew."""
_ROWS = 1024
_CODES = [(256, 64, 16), (256, 512, 16), (256, 512, 64), (1024, 128, 32), (64, 32, 8), (512, 1024, 8)]
_FACTORS = [(256, 512, 16), (256, 512, 64), (1024, 128, 32), (128, 1024, 32), (64, 32, 8), (1024, 32, 4)]
_WHOLE = [(64, 32), (256, 512), (1024, 128), (512, 64)]


@dataclasses.dataclass(frozen=True)
class CostModel:
    """The seconds that `amm` takes for a row of an op of any size, on one machine, with all of its threads.

    Attributes:
      machine: what it was measured on: processor, tier of the kernels, number of threads.
      row: seconds of every row.
      feature: seconds of each feature that is read.
      output: seconds of each output that is written.
      tree: seconds of each codebook's comparisons.
      projection: seconds of each multiply-add of oblique trees.
      look_up: seconds of each look-up: one per codebook and output.
      rounding: seconds of each feature that is rounded to int8.
      factor: seconds of each multiply-add of factors.
      int8: seconds of each multiply-add of a whole product in int8.
      exact: seconds of each multiply-add of XLA's product in float32.

    Example:
      >>> costs = CostModel("a machine", row=1e-8, feature=1e-11, output=1e-10, tree=1e-9, projection=1e-11,
      ...     look_up=1e-11, rounding=1e-11, factor=1e-11, int8=1e-11, exact=2e-11)
      >>> f"{costs.seconds(1000, 512, 256, 32, FitConfig('paper')):.2g}"
      '0.00015'
    """

    machine: str
    row: float
    feature: float
    output: float
    tree: float
    projection: float
    look_up: float
    rounding: float
    factor: float
    int8: float
    exact: float

    def __post_init__(self) -> None:
        if not isinstance(self.machine, str):
            raise TypeError(f"`machine` is {self.machine!r:.100}; expected a string.")
        for name in PARTS:
            expected = "a finite number of seconds, 0 or more"
            value = arguments.real(getattr(self, name), name, expected)
            if not 0 <= value < np.inf:
                raise ValueError(f"`{name}` is {value!r}; expected {expected}.")
            object.__setattr__(self, name, value)

    def seconds(self, rows: int, features: int, outputs: int, codebooks: int, config: FitConfig) -> float:
        """Returns the seconds of one call of `amm`.

        Args:
          rows: number of rows.
          features: D.
          outputs: M.
          codebooks: C.
          config: the options that the op is learned with; method "auto" counts as "oblique", which takes longer.
        """
        return self._sum(rows, _amounts(features, outputs, codebooks, config))

    def exact_seconds(self, rows: int, features: int, outputs: int) -> float:
        """Returns the seconds of XLA's product in float32 of the same shape."""
        return self._sum(rows, _exact_amounts(features, outputs))

    def _sum(self, rows: int, amounts: Float[np.ndarray, " parts"]) -> float:
        return rows * float(np.dot(amounts, [getattr(self, name) for name in PARTS]))


PARTS = tuple(field.name for field in dataclasses.fields(CostModel) if field.name != "machine")
"""Names of the parts of a cost."""


def _amounts(features: int, outputs: int, codebooks: int, config: FitConfig) -> Float[np.ndarray, " parts"]:
    """Returns how often each part counts in a row, in the order of `PARTS`."""
    oblique = config.method in ("oblique", "auto") and codebooks > 0
    width = max(-(-features // codebooks), config.width or 0) if codebooks else 0
    directions = -(-(config.rank + config.outliers) // GROUP) * GROUP
    amounts = {
        "row": 1,
        "feature": features,
        "output": outputs,
        "tree": codebooks,
        "projection": 4 * codebooks * width if oblique else 0,
        "look_up": codebooks * outputs,
        "rounding": features if oblique or directions or config.method == "int8" else 0,
        "factor": directions * (features + outputs),
        "int8": features * outputs if config.method == "int8" else 0,
        "exact": 0,
    }
    return np.array([amounts[name] for name in PARTS], np.float64)


def _exact_amounts(features: int, outputs: int) -> Float[np.ndarray, " parts"]:
    amounts = {"row": 1, "feature": features, "output": outputs, "exact": features * outputs}
    return np.array([amounts.get(name, 0) for name in PARTS], np.float64)


def costs(bar: Progress | None = None) -> CostModel:
    """Returns the cost model of this machine: from its file or, if there is none of this machine, measured and kept.

    Args:
      bar: shows the progress of measuring.
    """
    model = read(file())
    if model is None:
        model = _measured(bar or Progress(False))
        with contextlib.suppress(OSError, ValueError):  # a home that cannot be written: it is measured again next time
            keep(model)
    return model


def keep(model: CostModel) -> None:
    """Writes a cost model to the file in which `costs` finds it.

    Raises:
      OSError: The file cannot be written.
    """
    path = file()
    if path is None:
        raise OSError("There is no home folder for the file of the times. Name one: `JAX_MADDNESS_COSTS=FILE`.")
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, model)


def measure_costs(*, progress: bool | None = None) -> CostModel:
    """Measures the cost model of this machine, under its present load, in some seconds.

    Each part is the non-negative number of seconds with which the sums have the least relative squared errors.

    Args:
      progress: whether to show a progress bar on stderr; None shows it if measuring takes longer than two seconds.

    Returns:
      The model, for `fit(..., costs=)`; `python -m jax_maddness tune` keeps one in a file, where `fit` finds it.
    """
    with Progress(progress, "tune") as bar:
        return _measured(bar)


@modes()
def _measured(bar: Progress) -> CostModel:
    from scipy.optimize import nnls  # type: ignore[import-untyped]  # a quarter of the time of `import jax_maddness`

    shapes = _shapes()
    bar.expect(len(shapes) + len(_WHOLE))
    bar.stage("times of this machine")
    seconds, amounts = [], []
    for shape in shapes:
        seconds.append(seconds_of(placeholder(*shape), _rows(shape[0])))
        amounts.append(_amounts(*shape))
        bar.step()
    for whole in _WHOLE:
        seconds.append(least_seconds(jax.jit(jnp.matmul), jnp.asarray(_rows(whole[0])), jnp.ones(whole, jnp.float32)))
        amounts.append(_exact_amounts(*whole))
        bar.step()
    sums, unit = _ROWS * np.array(amounts), _ROWS * np.array(amounts).max(0)
    solution, _ = nnls(sums / unit / np.array(seconds)[:, None], np.ones(len(seconds)))
    return CostModel(this_machine(), **dict(zip(PARTS, (solution / unit).tolist(), strict=True)))


def _shapes() -> Sequence[tuple[int, int, int, FitConfig]]:
    """Returns what is timed: features, outputs, codebooks and options."""
    return [
        *((d, m, c, FitConfig(method)) for d, m, c in _CODES for method in ("paper", "oblique")),
        *((d, m, 0, FitConfig("paper", rank=r)) for d, m, r in _FACTORS),
        *((d, m, 0, FitConfig("int8")) for d, m in _WHOLE),
    ]


def _rows(features: int) -> Float[np.ndarray, "rows features"]:
    return np.random.default_rng(0).standard_normal((_ROWS, features), np.float32)


def file() -> pathlib.Path | None:
    """Returns the file of the cost model: `JAX_MADDNESS_COSTS`, or costs.json in the user's cache, if there is one."""
    given, cache = os.environ.get("JAX_MADDNESS_COSTS"), os.environ.get("XDG_CACHE_HOME")
    try:
        folder = pathlib.Path(cache) if cache else pathlib.Path.home() / ".cache"
    except RuntimeError:  # a user without a home
        return pathlib.Path(given) if given else None
    return pathlib.Path(given) if given else folder / "jax_maddness" / "costs.json"


def save(path: str | os.PathLike[str], model: CostModel) -> None:
    """Writes a cost model to a JSON file, which `costs` finds if its name is that of `file()`."""
    arguments.instance(model, "model", CostModel)
    text = json.dumps({"format": FORMAT, **dataclasses.asdict(model)}, indent=1)
    replace_file(path, lambda stream: stream.write(text.encode()))


def read(path: pathlib.Path | None) -> CostModel | None:
    """Returns the cost model in a file; None if there is none, a damaged one, or one of another machine."""
    if path is None:
        return None
    try:
        fields = json.loads(path.read_text())
        if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
            return None
        model = restored(CostModel, fields, "costs")
    except (OSError, ValueError, TypeError, OverflowError, RecursionError):  # damaged, or of another version
        return None
    return model if model.machine == this_machine() else None


def this_machine() -> str:
    """Returns what the times depend on: processor, tier, number of threads, and the device that JAX runs on."""
    tier = ffi.active_tier() if ffi.enabled() else "pure JAX"
    device = jax.default_backend()
    return f"{processor()}, {tier}, {threads()} threads" + (f", {device}" if device != "cpu" else "")
