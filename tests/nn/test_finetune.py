"""finetune: tables tuned end to end, in nnx and linen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.tunable import net, patches, perceptron

from jax_maddness import finetune, load_model, save_model, testing
from jax_maddness.nn.layers.approximate import to_op
from jax_maddness.nn.layers.float_tables import amm_floating, to_floats
from jax_maddness.nn.tuning import losses


def compiled(model):
    return jax.jit(model if isinstance(model, nnx.Module) else lambda x: model[0].apply(model[1], x))


def arrays(model):
    return jax.tree.map(np.asarray, nnx.state(model) if isinstance(model, nnx.Module) else model[1])


def error(fast, model, batches):
    said, wanted = compiled(fast), compiled(model)
    return np.mean([losses.nmse(said(x), wanted(x)) for x in batches])


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
@pytest.mark.parametrize("make", [perceptron, net, patches])
def test_distillation_brings_the_outputs_closer(make, tmp_path):
    model, fast, batches = make()
    before = arrays(model), arrays(fast)
    tuned, report = finetune(
        fast,
        teacher=model,
        batches=batches[2:],
        held_out=batches[:2],
        steps=100,
        look_every=25,
        learning_rate=0.01,
        return_report=True,
    )
    assert error(tuned, model, batches[:2]) < 0.8 * error(fast, model, batches[:2])
    np.testing.assert_allclose(error(tuned, model, batches[:2]), report.after, rtol=1e-3)
    np.testing.assert_allclose(error(fast, model, batches[:2]), report.before, rtol=1e-3)
    assert_same((arrays(model), arrays(fast)), before)
    structures = [jax.tree.map(lambda a: (a.shape, a.dtype), arrays(m)) for m in (fast, tuned)]
    assert structures[0] == structures[1]
    assert len(report.layers) == 2
    assert "NMSE" in str(report)
    save_model(tmp_path / "tuned", tuned)
    again = load_model(tmp_path / "tuned", model if isinstance(model, nnx.Module) else model[0])
    assert_same(arrays(again), arrays(tuned))


def test_an_untrained_round_trip_says_the_same():
    """If training does not lower the held-out loss, the model is the one that was given."""
    model, fast, batches = perceptron()
    tuned, report = finetune(
        fast, teacher=model, batches=batches, steps=2, look_every=1, learning_rate=1e3, return_report=True
    )
    assert (report.best_step, report.after) == (0, report.before)
    assert_same(arrays(tuned), arrays(fast))
    assert not report.worse


def test_the_best_look_is_kept_and_patience_ends():
    model, fast, batches = perceptron()
    tuned, report = finetune(
        fast,
        teacher=model,
        batches=batches[2:],
        held_out=batches[:2],
        steps=400,
        look_every=10,
        patience=2,
        learning_rate=0.1,
        return_report=True,
    )
    steps, looked = zip(*report.looks, strict=True)
    best = int(np.argmin(looked))
    assert (report.best_step, report.after) == (steps[best], looked[best])
    assert steps[-1] == steps[best] + 20 < 400
    np.testing.assert_allclose(error(tuned, model, batches[:2]), report.after, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("make", [perceptron, net])
def test_a_run_that_was_cut_goes_on_as_if_it_was_not(make, tmp_path):
    model, fast, batches = make()

    class CutError(Exception):
        pass

    def loss(outputs, wanted, batch):
        return losses.nmse(outputs, wanted)

    tunings = {"teacher": model, "steps": 40, "look_every": 10, "held_out": 2, "loss": loss, "train": "all"}
    reads = []

    def stream():
        for batch in batches:
            reads.append(0)
            if cut and len(reads) > 40:
                raise CutError
            yield batch

    cut = False
    whole = finetune(fast, batches=stream, **tunings)
    reads, cut = [], True
    with pytest.raises(CutError):
        finetune(fast, batches=stream, checkpoint=tmp_path / "run", **tunings)
    cut = False
    assert_same(arrays(finetune(fast, batches=stream, checkpoint=tmp_path / "run", **tunings)), arrays(whole))
    with pytest.raises(ValueError, match="another run"):
        finetune(fast, batches=stream, checkpoint=tmp_path / "run", **{**tunings, "steps": 30})


def test_all_parameters_may_be_trained():
    model, fast, batches = net()
    tables, everything = (
        finetune(fast, teacher=model, batches=batches, steps=20, look_every=10, train=train, learning_rate=0.01)
        for train in ("tables", "all")
    )
    kernel = fast[1]["params"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(tables[1]["params"]["Dense_0"]["kernel"], kernel)
    assert np.abs(everything[1]["params"]["Dense_0"]["kernel"] - kernel).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("make", [perceptron, net])
def test_hidden_states_are_brought_closer(make):
    """A loss on a hidden state alone changes that one for the better, and nothing after it."""
    model, fast, batches = make()
    path = "first" if make is perceptron else "Conv_0"
    tuned, report = finetune(
        fast,
        teacher=model,
        batches=batches[2:],
        loss=[losses.Term("nmse", 0.5, layers=path)],
        steps=60,
        look_every=20,
        learning_rate=0.01,
        return_report=True,
    )
    before, after = report.layers[path]
    assert after < 0.95 * before
    np.testing.assert_allclose(report.before, 0.5 * before, rtol=0.2)  # a mean over batches, and over all rows
    old, new = (op_arrays(one, "second" if make is perceptron else "Conv_1") for one in (fast, tuned))
    np.testing.assert_allclose(old["tables_offset"], new["tables_offset"], rtol=1e-4, atol=1e-5)
    assert np.abs(np.float32(old["tables_values"]) - np.float32(new["tables_values"])).max() <= 1  # rounded again


def op_arrays(model, path):
    if isinstance(model, nnx.Module):
        return {name: np.asarray(array[...]) for name, array in getattr(model, path).tables.arrays.items()}
    return model[1]["maddness"][path]["op"]


@pytest.mark.slow
def test_labels_come_with_the_batch():
    model, fast, inputs = perceptron()
    batches = [(x, jnp.argmax(model(x), -1)) for x in inputs]

    def loss(outputs, wanted, batch):
        return -jnp.take_along_axis(jax.nn.log_softmax(outputs), batch[1][:, None], -1).mean()

    _, report = finetune(
        fast,
        teacher=model,
        batches=batches,
        call=lambda model, batch: model(batch[0]),
        loss=loss,
        steps=60,
        look_every=20,
        return_report=True,
    )
    assert report.after < report.before


def test_gradients_are_those_of_the_exact_kernel_below_a_layer():
    """One step on a single batch changes the tables of the first layer as gradients through the exact head say."""
    model, fast, (x, *_) = perceptron()
    ops = {}
    for name in ("first", "second"):
        layer = getattr(fast, name)
        floats = to_floats({k: v[...] for k, v in layer.tables.arrays.items()})
        ops[name] = to_op(layer.spec, {**floats, "weights": getattr(model, name).kernel[...]})
    y = jax.nn.relu(amm_floating(x, ops["first"]))
    np.testing.assert_allclose(
        amm_floating(y, ops["second"]), fast.second(nnx.relu(fast.first(x))), rtol=1e-4, atol=1e-4
    )
    dy = jax.grad(lambda y: amm_floating(y, ops["second"]).sum())(y)
    np.testing.assert_allclose(dy, jnp.broadcast_to(model.second.kernel[...].sum(1), y.shape), rtol=1e-4, atol=1e-6)


def test_what_does_not_fit_is_said():
    model, fast, batches = perceptron()
    tune = {"teacher": model, "batches": batches}
    for changed, message in [
        ({"train": "trees"}, "tables"),
        ({"loss": "l2"}, "nmse"),
        ({"steps": 0}, "steps"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"batches": iter(batches)}, "again"),
        ({"batches": batches[:1]}, "held out"),
        ({"batches": []}, "empty"),
        ({"teacher": nnx.Linear(8, 4, rngs=nnx.Rngs(0))}, "such layer"),
    ]:
        with pytest.raises(ValueError, match=message):
            finetune(fast, **{**tune, **changed})
    for terms, message in [
        ([losses.Term("nmse", layers="encoder/.*")], r"matches no module .* There are: .*'first', 'head', 'second'"),
        ([], "list of `Term`s"),
        (["kl"], "list of `Term`s"),
    ]:
        with pytest.raises(ValueError, match=message):
            finetune(fast, **tune, loss=terms)
    for wrong, message in [({"loss": "l2"}, "nmse"), ({"layers": "*"}, "regular"), ({"weight": 0.0}, "positive")]:
        with pytest.raises(ValueError, match=message):
            losses.Term(**{"loss": "kl", **wrong})
    with pytest.raises(ValueError, match="No layer of `model` is replaced"):
        finetune(model, **tune)
    with pytest.raises(ValueError, match="makes them alike"):
        losses.nmse(jnp.ones((2, 1, 3)), jnp.ones((2, 5, 3)))
    with pytest.raises(ValueError, match="temperature"):
        losses.kl(0)


@pytest.mark.slow
@pytest.mark.parametrize("make", [perceptron, net])
def test_kernels_tune_as_products_do(make):
    """A few steps: Adam divides by gradients, so that rounding is magnified later on."""
    model, fast, batches = make()
    found = []
    for backend in ("jax", "auto"):
        with testing.force_backend(backend):
            tune = {"steps": 4, "look_every": 2, "return_report": True}
            found.append(finetune(fast, teacher=model, batches=batches, **tune)[1])
    np.testing.assert_allclose(found[0].looks, found[1].looks, rtol=1e-3)
