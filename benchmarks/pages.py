"""The tables of the documentation that benchmarks measured: python -m benchmarks.pages [--check]

Puts every table of docs/measured between its two marks in the pages, with machine, date and command:

    <!-- measured: NAME -->
    <!-- end -->

A benchmark's `--save` writes the file that a table is made of; nobody writes such a table by hand. A test runs
`--check`, which changes nothing and fails if a page differs.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence

from benchmarks import (
    depthwise,
    epilogue,
    fused_model,
    growth,
    heads,
    int8_libraries,
    lists,
    measured,
    orientation,
    paper,
    quality_report,
    restrictions,
    search_report,
    table,
)
from benchmarks.layers import report

PAGES = sorted((pathlib.Path(__file__).parents[1] / "docs").glob("*.md"))
TABLES: Mapping[str, Callable[[Sequence[measured.Record]], str]] = {
    "depthwise": depthwise.table,
    "epilogue": epilogue.table,
    "fused_model": fused_model.table,
    "growth": growth.table,
    "heads": heads.table,
    "int8_libraries": int8_libraries.table,
    "layers": report.documented,
    "lists": lists.table,
    "orientation": orientation.table,
    "paper": paper.table,
    "products": table.products,
    "quality": quality_report.documented,
    "restrictions": restrictions.table,
    "search": search_report.best,
    "threads": table.threads,
}
"""The files of docs/measured without their suffix, and what makes a table of their records."""
_BLOCK = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def block(name: str) -> str:
    """Returns the caption and the table of a file of docs/measured."""
    contents = measured.load(name)
    shown = TABLES[name](contents["records"])
    return f"{measured.caption(contents, shown)}\n\n{unbroken(shown)}\n"


def unbroken(table: str) -> str:
    """Returns a table in which browsers do not break a size such as `8192 x 1024 x 16` into several lines."""
    return re.sub(r"(?<=\d) x (?=\d)", "\u00a0x\u00a0", table)


def names(page: str) -> list[str]:
    """Returns the names of the tables of a page.

    Example:
      >>> names("<!-- measured: paper -->\\n| a table |\\n<!-- end -->\\n")
      ['paper']
    """
    return [match[2] for match in _BLOCK.finditer(page)]


def filled(page: str) -> str:
    """Returns the text of a page with the tables that are measured now."""
    return _BLOCK.sub(lambda match: match[1] + block(match[2]) + match[3], page)


def main(argv: Sequence[str] | None = None) -> None:
    """Fills the pages, or compares them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail where a page would change, and change nothing")
    args = parser.parse_args(argv)
    for page in PAGES:
        old = page.read_text()
        new = filled(old)
        if new != old and args.check:
            sys.exit(f"{page.name} has a table that is not that of docs/measured: run `python -m benchmarks.pages`.")
        if new != old:
            page.write_text(new)


if __name__ == "__main__":
    main()
