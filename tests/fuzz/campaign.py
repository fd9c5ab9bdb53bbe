"""Runs numbered cases until the time is over; the number of a case is the seed of all that is random in it."""

import argparse
import faulthandler
import sys
import time

import numpy as np
from helpers.memory import drop_compiled_programs


def run(case, program, seconds, seed=0, cases=None):
    """Runs `case(rng)` with one seed after the other; returns how many ran.

    A case that fails raises its error, after a line that says how to repeat it.
    """
    end, count = time.monotonic() + seconds, 0
    while count != cases and (count == 0 or time.monotonic() < end):
        try:
            case(np.random.default_rng(seed + count))
        except BaseException:
            print(
                f"Repeat it with: PYTHONPATH=tests python -m fuzz.{program} --seed {seed + count} --cases 1",
                file=sys.stderr,
            )
            raise
        count += 1
        if count % 100 == 0:
            drop_compiled_programs()
    return count


def main(case, program, title):
    """Runs a campaign with the options of the command line."""
    parser = argparse.ArgumentParser(prog=f"python -m fuzz.{program}", description=title)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--cases", type=int, help="the most cases to run")
    args = parser.parse_args()
    faulthandler.enable()
    count = run(case, program, args.seconds, args.seed, args.cases)
    print(f"{program}: {count} cases from seed {args.seed} on")
