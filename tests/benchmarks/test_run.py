"""The benchmark harness: its tables, limits and cliffs on made-up measurements, then one run on tiny problems."""

import contextlib
import json
import types

import pytest

from benchmarks import contenders, machine, measure, memory, problems, records, roofline, run, sweep, table, timing
from benchmarks.records import Measurement, Problem

LIMITS = {
    "clock_ghz": 2.0,
    "read_gb_s": {"1": 100.0, "16": 30.0, "256": 10.0},
    "store_gb_s": {"1": 50.0},
    "streaming_store_gb_s": {"1": 20.0},
    "fresh_32mb_ms": {"pages": 12.0, "huge_pages": 2.0},
}


def made_up(what, kind="rival", ms=1.0, shape=(1000, 256, 100), threads=1, **more):
    return Measurement(what, kind, *shape, threads, ms, (0.9 * ms, 1.1 * ms), 0.8 * ms, 5, **more)


def amm(ms, codebooks=16, **more):
    return made_up("amm, D/C = 16", "amm", ms, codebooks=codebooks, tier="avx2", **more)


# ---- Problems ----


@pytest.mark.parametrize("text", [*problems.FULL, "3x4x5:1", "3x4x5:1,2+loop+read"])
def test_problem_reads_what_it_writes(text):
    assert str(Problem.parse(text)) == text


@pytest.mark.parametrize("text", ["", "3x4", "3x4x5", "3x4x5:", "3x4x5:1+cake", "3x4x5:1,"])
def test_problem_says_what_a_problem_is(text):
    with pytest.raises(ValueError, match="write NxDxM:C"):
        Problem.parse(text)


def test_sweep_holds_the_other_letters_constant():
    for axis, along in problems.SWEEP.items():
        moving = {"N": "rows", "M": "outputs", "C": "codebooks", "D": "features"}[axis[0]]
        constant = {"rows", "outputs", "codebooks", "features"} - {moving}
        if moving == "codebooks":
            assert {p.features / p.codebooks[0] for p in along} == {16}
            constant -= {"features"}
        for name in constant:
            assert len({getattr(p, name) for p in along}) == 1


# ---- Tables ----


@pytest.mark.parametrize(("ms", "won"), [(0.5, True), (0.99, False), (2.0, False)])
def test_the_fastest_alternative_decides_who_wins(ms, won):
    measured = [made_up(records.F32, ms=9.0), made_up(records.TORCH, ms=1.0), amm(ms)]
    (contest,) = table.contests(measured, threads=1)
    assert contest.won == won
    assert contest.best.what == records.TORCH
    text = table.report(measured)
    assert ("### Where look-ups win, 1 thread" in text) == won
    assert ("### Where they lose, 1 thread" in text) == (not won)


def test_contests_take_the_better_layout_and_no_other_variant():
    measured = [
        made_up(records.F32, ms=9.0),
        amm(3.0),
        amm(2.0, variant=records.SMALL_BATCH),
        amm(1.0, variant="bfloat16 rows"),
        amm(4.0, codebooks=32),
    ]
    assert [c.amm.median_ms for c in table.contests(measured, 1)] == [2.0, 4.0]


def test_calls_inside_a_loop_decide_where_they_were_measured():
    measured = [
        made_up(records.F32, ms=20.0),
        amm(10.0),
        made_up("f32, in a jitted loop", "loop", 0.1),
        made_up("amm, in a jitted loop", "loop", 0.4, codebooks=4, variant=records.IN_A_LOOP),
    ]
    (contest,) = table.contests(measured, 1)
    assert contest.speed_up == pytest.approx(0.25)
    assert "| amm, in a jitted loop | 0.400 (0.360-0.440) | 0.25x |" in table.report(measured)


def test_report_has_ratios_to_f32_int8_reading_and_one_thread():
    one = [
        made_up(records.F32, ms=8.0),
        made_up(records.INT8_DYNAMIC, ms=4.0),
        made_up("reading x (somehow)", "read", 1.0),
        amm(2.0),
    ]
    two = [made_up(records.F32, ms=5.0, threads=2), amm(1.25, threads=2)]
    text = table.report([*one, *two])
    assert "| amm, D/C = 16 | 2.00 (1.80-2.20) | 4x | 2x | 0.5x |" in text
    assert "| 1000 x 256 x 100 | amm, D/C = 16 | 1.60x |" in text


def test_headline_says_when_it_was_not_quiet():
    facts = machine.facts()
    assert "Not quiet" in machine.headline(facts | {"others": 0.5}, LIMITS)
    assert "Not quiet" not in machine.headline(facts | {"others": 0.0}, None)


# ---- Roofline ----


def test_moved_bytes_are_those_of_x_tables_and_y():
    plain, few = amm(1.0, shape=(2, 32, 8), codebooks=4), amm(1.0, shape=(2, 32, 8), codebooks=4, variant="small batch")
    assert plain.moved_bytes == 4 * 2 * 32 + 16 * 4 * 8 + 4 * 2 * 8
    assert few.moved_bytes == 4 * 2 * 32 + 2 * 4 * 8 + 4 * 2 * 8


def test_points_are_look_ups_per_second_byte_and_cycle():
    tiny = amm(1.0, shape=(1, 64, 16))
    (point,) = roofline.points([amm(2.0, clock_ghz=None), amm(1.0, threads=2), tiny], clock_ghz=2.0)
    assert point.lookups_per_second == pytest.approx(1000 * 16 * 100 / 2e-3)
    assert point.lookups_per_cycle == pytest.approx(0.4)
    assert point.lookups_per_byte == 1_600_000 / (4 * 256_000 + 25_600 + 4 * 100_000)
    assert "| 0.4 | 1% | 0.7 | 7% |" in roofline.table([point], "GenuineIntel", LIMITS, [])


def test_an_unlisted_tier_is_measured_against_its_own_kernel():
    kernels = [{"tier": "sve", "lookups_per_cycle": 14.0}, {"tier": "sve", "cycles_f32": 2.0}]
    assert roofline.roof("sve", "", kernels) == 14.0
    assert roofline.roof("sve", "", []) is None
    assert roofline.roof("avx2", "AuthenticAMD") > roofline.roof("avx2", "GenuineIntel")


# ---- Sweep ----


def along_n(cost):
    return [amm(ms, shape=(rows, 256, 100)) for rows, ms in cost.items()]


def test_smooth_costs_have_no_cliff():
    assert not sweep.cliffs("N", along_n({n: 1 + 0.5 * n for n in (1, 2, 3, 4, 7, 8, 9, 16, 33)}))
    assert "No cliffs." in sweep.report({"N": along_n({1: 1.0, 2: 1.1})})


def test_cliffs_are_told_in_words():
    dearer = sweep.cliffs("N", along_n({8: 8.0, 9: 18.0, 16: 16.0}))
    assert [(c.at.rows, c.beside.rows, c.per_unit) for c in dearer] == [(9, 8, True)]
    assert str(dearer[0]).startswith("N = 9 (D = 256, M = 100, C = 16) costs 2.0 times as much per look-up as N = 8;")
    in_all = sweep.cliffs("N", along_n({3: 6.0, 4: 4.0}))
    assert [str(c).split(";")[0] for c in in_all] == [
        "N = 3 (D = 256, M = 100, C = 16) costs 1.5 times as much in all as the larger N = 4"
    ]


# ---- Timing ----


def test_everything_runs_in_every_round_inside_its_context():
    log = []

    @contextlib.contextmanager
    def context():
        log.append("in")
        yield
        log.append("out")

    calls = [types.SimpleNamespace(call=lambda i=i: log.append(i), context=context) for i in range(3)]
    figures = timing.interleaved(calls, seconds=0, rounds=(2, 5), slice_seconds=0)
    assert [len(own) for own in figures] == [2, 2, 2]
    first, *_, last = (log[i : i + 9] for i in range(len(log) - 18, len(log), 9))
    for one_round in (first, last):
        assert sorted(str(entry) for entry in one_round) == ["0", "1", "2", "in", "in", "in", "out", "out", "out"]


def test_a_contender_is_less_what_is_subtracted_and_per_call():
    entrant = contenders.Contender("amm", "loop", lambda: None, codebooks=4, repeats=10)
    m = measure.measurement(entrant, [0.3, 0.4, 0.5], [0.1, 0.1, 0.1], Problem(1, 64, 16, (4,)), 1, 2.5)
    assert (m.median_ms, *m.quartiles_ms, m.least_ms) == pytest.approx((0.3, 0.25, 0.35, 0.2))


# ---- All of it ----


@pytest.mark.slow
def test_a_run_writes_everything(tmp_path):
    shapes = ["64x32x16:4,2+tiers+dtypes+columns+read", "1x64x16:4+loop"]
    options = ["--threads", "1", "--rounds", "1", "2", "--seconds", "0", "--build", str(tmp_path / "none")]
    run.main(["--shapes", *shapes, *options, "--output", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    assert {m["kind"] for m in results["measurements"]} == {"rival", "other", "read", "amm", "loop"}
    assert all(m["median_ms"] > 0 for m in results["measurements"] if m["kind"] != "loop")
    text = (tmp_path / "table.md").read_text()
    assert "amm, D/C = 8" in text
    assert "bfloat16 rows" in text

    results["limits"] = LIMITS
    record = vars(amm(1.0))
    results["measurements"].append(record)
    results["sweep"] = [record | {"axis": "N", "rows": rows} for rows in (1, 2, 3)]
    (tmp_path / "more.json").write_text(json.dumps(results))
    run.main(["--again", str(tmp_path / "more.json"), "--output", str(tmp_path)])
    written = {"table.md", "results.json", "roofline.md", "roofline.png", "sweep.md", "sweep.png"}
    assert written <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("looped", [True, False])
def test_a_sweep_measures_every_problem(looped):
    entrants = list(contenders.along_a_sweep([Problem(3, 16, 5, (2,)), Problem(4, 16, 5, (2,))], looped))
    figures = timing.interleaved(entrants, seconds=0, rounds=(1, 1), slice_seconds=0)
    assert [e.kind for e in entrants] == ["empty", "amm", "amm"]
    assert all(len(own) == 1 for own in figures)


@pytest.mark.slow
def test_memory_is_told_as_a_multiple_of_the_matrix(monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv",
        ["memory", *["--rows", "100", "--features", "8", "--outputs", "4", "--codebooks", "2", "--methods", "paper"]],
    )
    monkeypatch.setattr(memory.subprocess, "run", lambda *_, **__: types.SimpleNamespace(stdout="6400"))
    memory.main()
    assert capsys.readouterr().out.splitlines()[1] == "paper: 0.00 GiB, 2.00 x the matrix"
    assert memory.fitted("paper", 100, 8, 4, 2) > 4 * 100 * 8
