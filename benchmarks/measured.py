"""What benchmarks have measured, for the documentation: a benchmark's `--save` writes a file of docs/measured.

    python -m benchmarks.pages   # puts the tables of these files into the pages

A file has the command, the facts of the machine, and the records, which are numbers and not yet text.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import shlex
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, BinaryIO

from benchmarks import machine
from jax_maddness.core.atomic import replace_file

FOLDER = pathlib.Path(__file__).parents[1] / "docs" / "measured"
RIVALS = {"torch": "torch", "faiss-cpu": "faiss", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
"""Packages, and their names in tables: a caption has the versions of those that its table has."""
Record = dict[str, Any]


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
        self.name, self.command = name, command(name, argv)
        self._facts, self._before = machine.facts(), machine.work()

    def contents(self, records: Sequence[Record]) -> Record:
        """Returns the contents of the file: command, facts, records."""
        self._facts["others"] = machine.others(self._before, machine.work())
        return {"command": self.command, "machine": self._facts, "records": list(records)}

    def finish(self, records: Sequence[Record], table: str, *, save: bool) -> None:
        """Prints the facts and the table, and writes the file if asked to."""
        contents = self.contents(records)
        print(machine.headline(contents["machine"], None))
        print(table)
        if save:
            write(self.name, contents)


def write(name: str, contents: Record) -> None:
    """Writes `docs/measured/NAME.json`, a record on each line; the file is written whole or not at all."""
    FOLDER.mkdir(exist_ok=True)
    head = json.dumps({key: entry for key, entry in contents.items() if key != "records"}, indent=1)
    lines = ",\n  ".join(json.dumps(record) for record in contents["records"])
    text = f'{head.removesuffix("}").rstrip()},\n "records": [\n  {lines}\n ]\n}}\n'
    replace_file(FOLDER / f"{name}.json", functools.partial(_write, text.encode()))


def _write(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def load(name: str) -> Record:
    """Returns what `write` was given."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def caption(contents: Record, table: str) -> str:
    """Returns the machine, the versions, the date and the command of a table as Markdown."""
    facts = contents["machine"]
    threads = contents.get("threads", facts["processors"])
    versions = [f"jax {facts['versions']['jax']}"]
    versions += [f"{shown} {facts['versions'][name]}" for name, shown in RIVALS.items() if shown in table]
    place = [f"{facts['cpu']} ({facts['design']})", f"{threads} thread{'s' * (threads != 1)}", *versions]
    busy = "; others were busy meanwhile" if facts["others"] > machine.QUIET else ""
    lines = textwrap.wrap(contents["command"], 88, break_long_words=False, break_on_hyphens=False)
    shown = " \\\n  ".join(lines)
    return f"{', '.join(place)}, {facts['date'][:10]}{busy}:\n\n```sh\n{shown}\n```"
