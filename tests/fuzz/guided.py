"""One reader of files with libFuzzer, by atheris: damaged files that reach new branches are kept, and damaged further.

    PYTHONPATH=tests python -m fuzz.guided op --seconds 60
    PYTHONPATH=tests python -m fuzz.guided op FILE ...      # reads these again

What libFuzzer keeps is in build/fuzz; a file that fails is there, too, under a name that it prints.
"""

import argparse
import pathlib
import sys
import tempfile

import atheris
import numpy as np

with atheris.instrument_imports(include=["jax_maddness"]):  # before anything else imports it
    from fuzz import files
    from fuzz.mutate import mutate

MOST_BYTES = 40_000


def change(data, max_size, seed):
    """One change of a file, its bytes by libFuzzer's own mutator; what is too large stays as it is."""
    changed = mutate(bytes(data), np.random.default_rng(seed), lambda part: atheris.Mutate(part, len(part) + 64))
    return changed if len(changed) <= max_size else bytes(data)


def main():
    """Runs libFuzzer on one reader."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.guided", description=__doc__)
    parser.add_argument("reader", choices=sorted(files.readers()))
    parser.add_argument("files", nargs="*", help="are read again, and nothing else is")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    corpus = pathlib.Path("build/fuzz") / args.reader
    corpus.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(files.seeds(args.reader)):
        (corpus / f"seed{i}").write_bytes(seed)
    options = {
        "max_total_time": args.seconds,
        "seed": args.seed + 1,  # 0 would be a random one
        "artifact_prefix": f"{corpus}-",
        "max_len": MOST_BYTES,
        "timeout": 30,
        "rss_limit_mb": 4096,
        "print_final_stats": 1,
    }
    folder = pathlib.Path(tempfile.mkdtemp(prefix="jax_maddness_fuzz_"))

    def check(data):
        files.check(args.reader, data, folder)

    libfuzzer = [f"-{name}={value}" for name, value in options.items()]
    atheris.Setup([sys.argv[0], *libfuzzer, *(args.files or [str(corpus)])], check, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
