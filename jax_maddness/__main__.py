"""The command line of the package: `python -m jax_maddness doctor` and `python -m jax_maddness tune`."""

from __future__ import annotations

import argparse
import sys

from jax_maddness import doctor
from jax_maddness.learn import costs


def main(argv: list[str] | None = None) -> int:
    """Runs the command that `argv` names, by default that of the command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m jax_maddness", description="Matrix products by look-up, in JAX.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="report versions and tiers, run a self-test; exit status 1 on a problem")
    commands.add_parser("tune", help="measure the times by which `fit` chooses sizes, and keep them in a file")
    return tune() if parser.parse_args(argv).command == "tune" else doctor.main()


def tune() -> int:
    """Measures the cost model of this machine anew, keeps it in its file and prints both; returns 1 if it cannot."""
    model = costs.measure_costs(progress=True)
    kept = True
    try:
        costs.keep(model)
        print(f"{costs.file()}: {model.machine}")
    except OSError as error:
        kept = False
        print(f"{model.machine}; these times are not kept: {error}")
    for name in costs.PARTS:
        print(f"{name:>12}  {1e12 * getattr(model, name):.4g} ps")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
