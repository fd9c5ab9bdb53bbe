"""Records of benchmarks, from which the tables of the documentation are made: `--save` writes them to docs/measured.

    python -m benchmarks.pages   # puts the tables into the pages

A file has the command, the facts of the machine, and the records, which are numbers and not yet text.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shlex
import sys
import textwrap
from collections.abc import Sequence

from benchmarks import files, machine
from benchmarks.records import Record

FOLDER = pathlib.Path(__file__).parents[1] / "docs" / "measured"
RIVALS = {"torch": "torch", "faiss-cpu": "faiss", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
"""Packages, and their names in tables: a caption has the versions of those that its table has."""


def add_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--save` to the options of a benchmark."""
    parser.add_argument("--save", action="store_true", help="write the records to docs/measured, for the documentation")


def command(module: str, argv: Sequence[str] | None) -> str:
    """Returns the command that started this process: the options are `argv`, or those of the process, if it is None."""
    own = [option for option in (sys.argv[1:] if argv is None else argv) if option != "--save"]
    pinned = ["taskset", "-c", "1"] if len(os.sched_getaffinity(0)) == 1 else []
    return shlex.join([*pinned, "python", "-m", f"benchmarks.{module}", *own])


class Run:
    """A run of a benchmark, from the facts about the machine before it to the load by others meanwhile."""

    def __init__(self, name: str, argv: Sequence[str] | None):
        self._name, self._command = name, command(name, argv)
        self._facts, self._before = machine.facts(), machine.work()

    def finish(self, records: Sequence[Record], table: str, *, save: bool) -> None:
        """Prints the facts and the table, and writes the file if asked to."""
        self._facts["others"] = machine.others(self._before, machine.work())
        print(machine.headline(self._facts, None))
        print(table)
        if save:
            write(self._name, self._command, self._facts, records, self._facts["processors"])


def write(name: str, command: str, facts: Record, records: Sequence[Record], threads: int) -> None:
    """Writes `docs/measured/NAME.json`, a record on each line.

    Args:
      name: of the table, one of `TABLES` in pages.py.
      command: what `command` returns.
      facts: what `machine.facts` returns, and the load by others.
      records: the results, each of which JSON can represent.
      threads: number of threads that were measured.
    """
    FOLDER.mkdir(exist_ok=True)
    head = json.dumps({"command": command, "threads": threads, "machine": facts}, indent=1)
    lines = ",\n  ".join(map(json.dumps, records))
    text = f'{head.removesuffix("}").rstrip()},\n "records": [\n  {lines}\n ]\n}}\n'
    files.write_text(FOLDER / f"{name}.json", text)


def load(name: str) -> Record:
    """Returns the contents of the file that `write` wrote."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def caption(contents: Record, table: str) -> str:
    """Returns the machine, the versions, the date and the command of a table as Markdown."""
    facts = contents["machine"]
    threads = contents["threads"]
    versions = [f"jax {facts['versions']['jax']}"]
    versions += [f"{shown} {facts['versions'][name]}" for name, shown in RIVALS.items() if shown in table]
    place = [f"{facts['cpu']} ({facts['design']})", f"{threads} thread{'s' * (threads != 1)}", *versions]
    busy = "; others were busy meanwhile" if facts["others"] > machine.QUIET else ""
    lines = textwrap.wrap(contents["command"], 88, break_long_words=False, break_on_hyphens=False)
    shown = " \\\n  ".join(lines)
    return f"{', '.join(place)}, {facts['date'][:10]}{busy}:\n\n```sh\n{shown}\n```"
