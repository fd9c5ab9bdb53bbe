"""The parts of the example that plans MiniLM, on a tiny one with random weights."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

import jax_maddness
from examples import glosses, minilm, minilm_plan, rivals
from jax_maddness import Rule
from jax_maddness.nn.planning.report import Plan
from jax_maddness.nn.planning.verdict import LayerPlan, Option

TINY = minilm.Config(vocabulary=60, positions=16, width=32, hidden=64, heads=4, layers=2)


@pytest.fixture(scope="module")
def model():
    return minilm.MiniLM(TINY, nnx.Rngs(0))


@pytest.fixture(scope="module")
def batches(model):
    tokens = list(np.random.default_rng(0).integers(1, 60, (6, 32, 8)).astype(np.int32))
    return list(zip(tokens, minilm_plan.vectors(model, tokens), strict=True))


def near(model, batches):
    found = minilm_plan.vectors(model, [batch[0] for batch in batches])
    return float(np.mean([minilm_plan.cosine(one, batch) for one, batch in zip(found, batches, strict=True)]))


def activations(model, batches):
    rows = jax_maddness.capture(model, batches, [Rule("layers/./down")], call=minilm_plan.call).rows
    return [rows[f"layers/{i}/down"][0][:, 0] for i in range(TINY.layers)]


@pytest.mark.slow
def test_int8_is_close_and_the_model_stays_as_it_is(model, batches):
    assert near(rivals.in_int8(model), batches) > 0.999
    assert near(model, batches) > 1 - 1e-5
    assert isinstance(rivals.in_int8(model, attention=False).layers[0].attention.qkv, nnx.Linear)


@pytest.mark.slow
def test_pruning_keeps_what_matters_and_fits_the_rest(model, batches):
    """A unit that does nothing is cut first; with all units left nothing changes."""
    silent = nnx.clone(model)
    for layer in silent.layers:
        layer.down.kernel[...] = layer.down.kernel[...].at[5].set(0.0)
    rows = activations(silent, batches)
    wanted = minilm_plan.vectors(silent, [batches[0][0]])[0]
    one_less = rivals.pruned(silent, rows, TINY.hidden - 1)
    assert one_less.layers[0].up.kernel.shape == (TINY.width, TINY.hidden - 1)
    np.testing.assert_allclose(minilm_plan.vectors(one_less, [batches[0][0]])[0], wanted, atol=2e-3)
    by_half = near(rivals.pruned(model, activations(model, batches), TINY.hidden // 2), batches)
    assert near(rivals.pruned(model, activations(model, batches), 4), batches) < by_half < 1


@pytest.mark.slow
def test_distillation_brings_the_vectors_closer(model, batches):
    small = rivals.pruned(model, activations(model, batches), 8)
    tuned = rivals.distilled(small, batches[:4], 30, 3e-3, "distil")
    assert near(tuned, batches[4:]) > near(small, batches[4:])


@pytest.mark.slow
def test_the_widest_ffn_that_is_in_time(monkeypatch, model):
    """As if the layer took so long, and the dense ones 1 and 2 ms."""
    for limit, widest in ((1.5, 8), (2.0, 16), (0.5, 8)):
        times = [(limit, 0.0), (1.0, 0.0), (2.0, 0.0)]
        monkeypatch.setattr(rivals.measure, "interleaved", lambda calls, seconds, times=times: times)
        assert rivals.hidden_in_time(model.layers[0], 16, TINY.width, [8, 16], int8=widest == 16) == widest


def test_sentences_have_the_class_of_their_file(monkeypatch):
    """Sentences that are long enough and not too long, with padding after the end."""
    texts = {"a" * n: f"n.{n}" for n in range(1, 40)}
    monkeypatch.setattr(glosses, "load_classes", lambda: (list(texts), list(texts.values())))
    monkeypatch.setattr(minilm, "load_tokenizer", lambda: None)
    monkeypatch.setattr(minilm, "tokenize", lambda some, _: [[7] * len(text) for text in some])
    tokens, classes = minilm_plan.sentences(4)
    assert sorted(classes) == ["n.13", "n.14", "n.15", "n.16"]
    assert [f"n.{(row != minilm.PAD).sum()}" for row in tokens] == classes.tolist()
    with pytest.raises(ValueError, match="Only 4 glosses"):
        minilm_plan.sentences(5)


def test_synsets_are_of_the_file_whose_range_they_are_in():
    assert glosses.lexicographer_file("ENG31-01315583-n") == "n.act"
    assert glosses.lexicographer_file("ENG31-01315584-n") == "n.animal"
    assert glosses.lexicographer_file("ENG31-00001740-n") is None  # entity
    assert glosses.lexicographer_file("ENG31-00001740-v") == "v.body"
    assert sum(map(len, glosses.FILES.values())) == 40


def test_the_verdict_follows_the_figures():
    exact, int8 = Option("exact", 0, 3.0, 0.0, 0.0), Option("int8", 0, 2.0, 0.0, 1e-4)
    codes = Option("codes", 4, 1.0, 0.0, 0.3, drop=0.05)
    line = LayerPlan("layers/0/up", ("layers/0/up",), "Linear", (32, 64), 256, (exact, int8, codes), words="stays: ...")
    others = (
        dataclasses.replace(line, name="b", choice=4),
        dataclasses.replace(line, name="c", choice=0, by="int8"),
        LayerPlan("d", ("d",), "", (1, 1), 0, words="stays: late"),
    )
    plan = Plan((line, *others), 0.01, "cosine", "here")
    of, coded = minilm_plan.Result, minilm_plan.Result(0.8, 0.5, 10.0)
    results = {minilm_plan.EXACT: of(1.0, 0.7, 20.0), minilm_plan.PLANNED: coded, minilm_plan.TUNED: coded}
    results |= {minilm_plan.INT8_ALL: of(0.99, 0.7, 9.0), minilm_plan.PRUNED: of(0.9, 0.6, 12.0)}
    said = "\n".join(minilm_plan.verdict(plan, results))
    assert "replaces 2 of 4 layers: 1 by codes, 1 by int8" in said
    assert "No look-ups in 2 of 4: alone each would cost more than 0.01" in said
    assert "No look-ups in 1 of 4: late" in said
    assert "Of 3 layers measured, look-ups are faster than int8 in 3, closer in 0." in said
    assert "2.00 times as fast, 20.0 points less accurate" in said
    assert "int8, all layers is closer and no slower" in said
    assert "distilled is closer, and 1.20 times slower" in said
    results[minilm_plan.PRUNED] = of(0.7, 0.6, 11.0)
    assert "distilled is worse in both" in minilm_plan.verdict(plan, results)[-1]
    assert "| exact f32 | 1.0000 | 0.700 | 20.0 | 1.00x |" in minilm_plan.table(results)


@pytest.mark.slow
def test_models_are_compared_on_the_same_sentences(model, batches):
    """Two models, with a head that knows nothing."""

    class Head:
        def score(self, found, classes):
            return float(found.shape == (64, TINY.width))

    models = {minilm_plan.EXACT: model, minilm_plan.INT8_ALL: rivals.in_int8(model)}
    results = minilm_plan.compare(models, Head(), batches[:2], np.array(["a"] * 64), 0.01)
    assert list(results) == list(models)
    assert results[minilm_plan.EXACT].cosine == pytest.approx(1, abs=1e-5)
    assert all(one.ms > 0 and one.accuracy == 1 for one in results.values())
