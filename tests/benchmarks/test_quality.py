"""benchmarks/quality.py: its problems, its baselines, its ratios, its files."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import baselines, quality, quality_report, quantizers
from benchmarks.packaged import Matrices, packaged

BASELINES = [m for m in (*baselines.METHODS, *quantizers.METHODS) if m.runs]
IN_RANKS = [m for m in BASELINES if m.name in ("low-rank", "pca", "random")]
IN_CODEBOOKS = [m for m in BASELINES if m.name in ("pq", "opq", "opq-faiss", "bolt")]


@pytest.fixture
def folder(rng, tmp_path):
    """A folder with one problem, and what a reference reaches on it."""
    x = rng.standard_normal((60, 9)).astype(np.float16)
    np.savez(tmp_path / "tiny.npz", x_train=x[:40], x_test=x[40:], w=rng.standard_normal((9, 5)).astype(np.float32))
    (tmp_path / "reference_nmse.json").write_text(json.dumps({"tiny": {"by_codebooks": {"2": {"nmse_floatlut": 0.5}}}}))
    return tmp_path


@pytest.mark.slow
def test_a_run_writes_everything(folder, capsys):
    out = folder / "out"
    arguments = ["--problems", str(folder), "--methods", "paper", "--codebooks", "2,3,64", "--output", str(out)]
    quality.main(arguments)
    records = json.loads((out / "quality.json").read_text())
    assert [(r["problem"], r["method"], r["codebooks"]) for r in records] == [
        ("tiny", "paper", 2),
        ("tiny", "paper", 3),
    ]
    assert records[0]["ratio"] == pytest.approx(records[0]["nmse"] / 0.5)
    assert "ratio" not in records[1]
    assert "1 ratios: geometric mean" in (out / "quality.md").read_text()
    assert (out / "quality.png").stat().st_size > 1000
    assert "| tiny | 40 x 9 x 5 |" in capsys.readouterr().out


@pytest.mark.slow
def test_baselines_stand_in_the_same_tables_and_pictures_and_are_timed(folder, capsys):
    out = folder / "out"
    arguments = ["--problems", str(folder), "--methods", "paper,int8,low-rank,pq", "--codebooks", "2", "--time"]
    quality.main([*arguments, "--output", str(out)])
    records = json.loads((out / "quality.json").read_text())
    assert [(r["method"], r["label"]) for r in records] == [
        ("paper", "C = 2"),
        ("int8", ""),
        ("low-rank", "r = D/8"),
        ("low-rank", "r = D/4"),
        ("pq", "C = 2"),
    ]
    assert all(r["microseconds"] > 0 and 0 < r["time"] < 1e3 for r in records)
    text = (out / "quality.md").read_text()
    assert "| problem | int8 | low-rank | pq |" in text
    assert "One thread" not in text
    assert "one thread, 1024 rows" in text
    assert (out / "time.png").stat().st_size > 1000
    assert "### At equal time" in capsys.readouterr().out


@pytest.mark.parametrize(("methods", "message"), [("papr,pq", "papr: there are"), ("missing", "nothing is not inst")])
def test_a_method_that_cannot_run_is_an_error(methods, message, monkeypatch, capsys):
    missing = quality.Method("missing", baselines.exact, baselines.one_size, needs="nothing")
    monkeypatch.setitem(quality.METHODS, "missing", missing)
    with pytest.raises(SystemExit):
        quality.main(["--methods", methods])
    assert message in capsys.readouterr().err


def matrices(rng, rows=200, features=12, outputs=7):
    """Correlated rows about a mean, weights, a bias."""
    x = rng.standard_normal((rows, features)) @ rng.standard_normal((features, features)) + 3
    return tuple(np.float32(a) for a in (x, rng.standard_normal((features, outputs)), rng.standard_normal(outputs)))


def error(found, x, w, b):
    """Relative to the outputs' variance."""
    y = x.astype(np.float64) @ w + b
    return ((np.asarray(found(jnp.asarray(x))) - y) ** 2).mean() / y.var(0).mean()


def test_exact_is_exact_and_int8_nearly(rng):
    problem = matrices(rng)
    assert error(baselines.exact(*problem, 0), *problem) < 1e-12
    assert 1e-9 < error(baselines.int8(*problem, 0), *problem) < 1e-3


@pytest.mark.parametrize("method", IN_RANKS, ids=lambda m: m.name)
def test_a_projection_of_full_rank_is_exact_on_any_rows(method, rng):
    x, w, b = matrices(rng)
    x_train = x[:, :1] * rng.standard_normal(12).astype(np.float32) + 0.1 * x
    low, full = (method.learn(x_train, w, b, size) for size in (1, 12))
    assert error(full, x, w, b) < 1e-6
    assert error(low, x, w, b) > 1e-3


def test_low_rank_is_the_best_projection_on_the_rows_it_was_learned_from(rng):
    problem = matrices(rng, rows=5000)
    errors = {m.name: error(m.learn(*problem, 3), *problem) for m in BASELINES if m.name in ("pca", "random")}
    least = error(baselines.low_rank(*problem, 3), *problem)
    assert all(least < e < 1.01 for e in errors.values())


def test_sparse_components_explain_more_than_none_and_leave_features_out(rng):
    factors = np.kron(np.eye(3), np.ones(4)) * [[3], [2], [1]]  # three groups of four alike features
    x = np.float32(rng.standard_normal((300, 3)) @ factors + 0.1 * rng.standard_normal((300, 12)))
    w, b = matrices(rng)[1:]
    found = baselines.sparse_pca(x, w, b, 3)
    assert error(found, x, w, b) < 0.05
    assert (np.asarray(found.operands[0]) == 0).mean() > 0.3


@pytest.mark.parametrize("features", [12, 10])
@pytest.mark.parametrize("method", IN_CODEBOOKS, ids=lambda m: m.name)
def test_quantisation_is_exact_to_8_bits_where_there_are_prototypes_for_all_rows(method, features, rng):
    x, w, b = matrices(rng, rows=16, features=features)
    assert error(method.learn(x, w, b, 3), x, w, b) < 1e-3


def test_a_code_is_that_of_the_nearest_prototype(rng):
    x = rng.standard_normal((50, 10)).astype(np.float32)
    prototypes = quantizers.k_means(x, 3)
    codes = np.asarray(quantizers.nearest(jnp.asarray(x), quantizers._squares(prototypes)))
    assert prototypes.shape == (3, 16, 4)
    for row, found in zip(x, codes, strict=True):
        for part, centers, code in zip((row[:4], row[4:7], row[7:]), prototypes, found, strict=True):
            distances = ((part - centers[:, : len(part)]) ** 2).sum(-1)
            assert distances[code] <= distances.min() + 1e-5


def test_a_rotation_spreads_variance_over_codebooks(rng):
    x, w, b = matrices(rng, rows=1000)
    x[:, 3:] *= 0.05  # nearly all of it in the first codebook
    assert error(quantizers.opq(x, w, b, 4), x, w, b) < 0.7 * error(quantizers.pq(x, w, b, 4), x, w, b)


def test_bolts_tables_have_one_scale_and_an_offset_per_codebook(rng):
    tables = rng.standard_normal((3, 16, 5)).astype(np.float32) + np.float32([[[10]], [[-20]], [[0]]])
    found = quantizers.shared_scale(tables, np.ones(5, np.float32))
    assert len(set(np.asarray(found.scale).tolist())) == 1
    assert len(set(np.asarray(found.offset).tolist())) == 1
    sums = np.asarray(found.values)[:, range(3), [4, 5, 6]].sum(1) * found.scale + found.offset
    np.testing.assert_allclose(sums, tables[range(3), [4, 5, 6]].sum(0) + 1, atol=3 * float(found.scale[0]))


@pytest.mark.parametrize("method", BASELINES, ids=lambda m: m.name)
@pytest.mark.parametrize("constant", ["some", "all", "zeros"])
def test_constant_features_do_no_harm(method, constant, rng):
    x, w, b = matrices(rng, rows=60)
    x[:, 5:] = 2 if constant != "zeros" else 0
    x[:, :5] = x[:, :5] if constant == "some" else x[0, 5]
    y = np.asarray(method.learn(x, w, b, 3)(jnp.asarray(x)))
    assert y.shape == (60, 7)
    assert np.isfinite(y).all()
    if constant != "some":
        products = np.einsum("ncd,cdm->ncm", x.reshape(60, 3, 4), w.reshape(3, 4, 7))  # what is in the tables
        step = np.ptp(products, axis=(0, 2)).max() / 255  # the coarsest: one scale for all outputs
        np.testing.assert_allclose(y, x @ w + b, atol=3 * step / 2 + 1e-4)


def test_sizes_are_those_that_save_something():
    ranks = {m.name: m.sizes(512, 128, [4, 600]) for m in BASELINES}
    assert ranks["low-rank"] == {"r = D/64": 8, "r = D/32": 16, "r = D/16": 32, "r = D/8": 64}
    assert ranks["sparse-pca"] == {"r = D/64": 8, "r = D/32": 16, "r = D/16": 32}
    assert ranks["pq"] == {"C = 4": 4}
    assert ranks["exact"] == {"": 0}


def test_at_equal_time_stands_the_size_that_compares_best():
    ours = [{"method": "axis", "ours": True, "label": "C = 4", "time": 0.1, "nmse": 0.4, "codebooks": 4}]
    theirs = [
        {"method": "pca", "ours": False, "label": label, "time": t, "nmse": e, "codebooks": None}
        for label, t, e in (("r = D/64", 0.05, 0.9), ("r = D/16", 0.2, 0.5), ("r = D/8", 0.3, 0.3), ("r = D/4", 2, 0.1))
    ]
    slow = [theirs[-1] | {"method": "int8"}]
    quick = [theirs[0] | {"method": "random"}]
    records = [{"problem": "p", **r} for r in (*ours, *theirs, *slow, *quick)]
    last = quality_report.at_equal_time(records).splitlines()[-1]
    cells = "**0.3000** / 0.4000 (r = D/8; 0.30, 0.10) | exact is quicker | **0.9000** / - (r = D/64; 0.05)"
    assert last == f"| p | {cells} |"


def test_without_a_reference_the_papers_method_is_one():
    records = [{"problem": "p", "codebooks": 4, "method": m, "nmse": e} for m, e in (("paper", 0.2), ("axis", 0.1))]
    records.append({"problem": "p", "codebooks": None, "method": "exact", "nmse": 0.0})
    assert [r.get("ratio") for r in quality_report.with_ratios(records, None)] == [1, 0.5, None]


@pytest.mark.slow
def test_packaged_problems_are_matrix_products_of_two_kinds_of_rows():
    problems = list(packaged())
    assert [p.name for p in problems] == ["digits hidden", "digits head", "photo cosines", "photo sobel"]
    for p in problems:
        assert p.x_train.shape[1] == p.x_test.shape[1] == p.w.shape[0]
        assert p.b.shape == p.w.shape[1:]
        assert all(a.dtype == np.float32 for a in (p.x_train, p.x_test, p.w, p.b))
        assert not (p.x_train[:, None, :8] == p.x_test[None, :50, :8]).all(-1).all()
    cosines = problems[2].w
    np.testing.assert_allclose(cosines.T @ cosines, np.eye(192), atol=1e-5)


def test_a_problem_without_a_bias_has_none(folder):
    assert not Matrices.load(folder / "tiny.npz").b.any()
