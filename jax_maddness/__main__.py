"""The command line of the package: `python -m jax_maddness doctor`."""

from __future__ import annotations

import argparse
import sys

from jax_maddness import doctor


def main(argv: list[str] | None = None) -> int:
    """Runs the command that `argv` names, by default that of the command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m jax_maddness", description="Matrix products by look-up, in JAX.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="report versions and tiers, run a self-test; exit status 1 on a problem")
    parser.parse_args(argv)
    return doctor.main()


if __name__ == "__main__":
    sys.exit(main())
