"""How fast: one harness, `python -m benchmarks.run` (`make bench`). How accurate: quality.py.
What exact terms bring: terms.py; what deeper trees would: leaves.py.

records.py      the nouns: Problem, Measurement                                          <- READ FIRST
problems.py     the shapes of the table, and of the sweep
contenders.py   what is measured on a problem: amm, its variants, and what one would use instead
timing.py       everything in turn, round after round
measure.py      one process with so many threads: problems in, measurements out
table.py        measurements -> Markdown: where look-ups win, where they lose, everything in detail
roofline.py     measurements -> look-ups per second and per byte, beside both limits
sweep.py        measurements along N, D, C and M -> a table, and cliffs in words
pictures.py     the pictures of both
run.py          the command: starts measure.py, adds the machine, writes JSON, Markdown and pictures
"""
