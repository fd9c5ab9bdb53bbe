"""python -m jax_maddness doctor"""

from __future__ import annotations

import argparse
import sys

from jax_maddness import doctor


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jax_maddness", description="Matrix products by look-up, in JAX.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="versions, tiers, self-test; exit status 0 where all is well")
    parser.parse_args(argv)
    return doctor.main()


if __name__ == "__main__":
    sys.exit(main())
