"""Benchmarks of time, `python -m benchmarks.run` (`make bench`), and of accuracy, `python -m benchmarks.quality`
(`make quality`).

Time:

records.py      the data types: Problem, Measurement                                     <- READ FIRST
problems.py     the shapes of the table and of the sweep
contenders.py   the calls that are measured on a problem: amm, its variants, and the alternatives
timing.py       times contenders in turn, round after round
measure.py      measures problems in one process with a given number of threads
table.py        tables in Markdown: where look-ups win, where they lose, all measurements
roofline.py     look-ups per second and per byte, compared with the limits of core and memory
sweep.py        cost along N, D, C and M as a table, with cliffs described in words
pictures.py     the pictures of roofline.py, sweep.py and search.py
run.py          the command: starts measure.py, adds the machine, writes JSON, Markdown and pictures

Accuracy:

approximation.py     the data types: Approximation, Method                               <- READ FIRST
packaged.py          the problems
baselines.py         alternatives to `fit`: exact, int8, low rank, sketches
quantizers.py        alternatives to `fit`: product quantization
quality_time.py      times of approximations relative to the exact product, in a process with one thread
quality_report.py    ratios, the frontier and tables in Markdown
quality_pictures.py  pictures of NMSE against C and against time
quality.py           the command: every method, problem and size; writes JSON, Markdown and pictures

factors.py measures int8 factors beside codes and alone, leaves.py that of deeper trees. search*.py measure `search`.
"""
