"""Decoding loops against plain loops, with a model whose next token depends on all tokens before."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_maddness import build_index, decoding, top_k

TOKENS, END = 5, 0


@pytest.fixture(scope="module")
def table():
    """Log-probabilities of the next token, by a hash of all tokens so far, of 64 values."""
    logits = 2 * np.random.default_rng(0).standard_normal((64, TOKENS))
    return np.float32(logits - np.log(np.exp(logits).sum(1, keepdims=True)))


def step_of(table, k=TOKENS):
    def step(state, tokens):
        hashes, calls = state
        hashes = (hashes * 7 + tokens + 1) % 64
        values, chosen = jax.lax.top_k(jnp.asarray(table)[hashes], k)
        return (hashes, calls + 1), decoding.Choices(values, chosen)

    return step


def by_hand(table, start, first, width, max_tokens, penalty):
    """Beam search as loops say: (score, tokens) of each continuation, best first."""
    beam = [(0.0, [], (start * 7 + first + 1) % 64, False)]
    for _ in range(max_tokens):
        longer = []
        for score, tokens, state, done in beam:
            if done:
                longer.append((score, tokens, state, True))
                continue
            for token in range(TOKENS):
                total = score + table[state, token]
                ends = token == END
                longer.append((total, tokens + [token] * (not ends), (state * 7 + token + 1) % 64, ends))
        beam = sorted(longer, key=lambda each: -each[0])[:width]
        if all(done for *_, done in beam):
            break
    scored = [(s / max(len(t) + done, 1) ** penalty, t) for s, t, _, done in beam]
    return sorted(scored, key=lambda each: -each[0])


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("width", [1, 2, 4, 9])
def test_beam_search_is_what_loops_say(table, width, penalty):
    starts, firsts = jnp.array([0, 11, 23]), jnp.array([1, 2, 3])
    search = functools.partial(
        decoding.beam_search, step_of(table), width=width, max_tokens=6, end=END, length_penalty=penalty
    )
    decoded = jax.jit(search)((starts, jnp.int32(0)), firsts)
    for i in range(3):
        wanted = by_hand(table, int(starts[i]), int(firsts[i]), width, 6, penalty)
        for b, (score, tokens) in enumerate(wanted):
            assert decoded.tokens[i, b].tolist() == tokens + [-1] * (6 - len(tokens))
            assert decoded.lengths[i, b] == len(tokens)
            np.testing.assert_allclose(decoded.scores[i, b], score, rtol=1e-5)


def test_greedy_is_a_beam_of_one(table):
    starts, firsts = jnp.array([0, 11, 23, 40]), jnp.array([1, 2, 3, 4])
    state = starts, jnp.int32(0)
    decode = jax.jit(functools.partial(decoding.greedy, step_of(table, 1), max_tokens=8, end=END))
    decoded = decode(state, firsts)
    beam = decoding.beam_search(step_of(table), state, firsts, width=1, max_tokens=8, end=END)
    np.testing.assert_array_equal(decoded.tokens, beam.tokens[:, 0])
    np.testing.assert_array_equal(decoded.lengths, beam.lengths[:, 0])
    assert decoded.scores is None
    assert decoded.state[1] == min(8, int(decoded.lengths.max()) + 1)  # it stops when all have ended


def test_a_beam_wider_than_what_there_is(table):
    decoded = decoding.beam_search(
        step_of(table, 2), (jnp.array([3]), jnp.int32(0)), jnp.array([1]), width=4, max_tokens=1, end=END
    )
    assert (decoded.scores[0] > -np.inf).tolist() == [True, True, False, False]
    assert (decoded.tokens[0, 2:] == -1).all()


def test_the_head_is_an_index(rng):
    embedding = np.float32(rng.standard_normal((200, 8)))
    hidden = jnp.asarray(rng.standard_normal((200, 8)), jnp.float32)
    index = build_index(embedding, 4, queries=np.asarray(hidden))

    def step(state, tokens, candidates):
        state = state * 0.5 + hidden[tokens]
        return state, decoding.Choices(*top_k(state, index, k=4, num_candidates=candidates, log_sum=True))

    def exact(state, tokens):
        state = state * 0.5 + hidden[tokens]
        log_probabilities = jax.nn.log_softmax(state @ embedding.T)
        return state, decoding.Choices(*jax.lax.top_k(log_probabilities, 4))

    state, first = jnp.zeros((3, 8)), jnp.array([5, 6, 7])
    wanted = decoding.beam_search(exact, state, first, width=4, max_tokens=5, end=0)
    everything = functools.partial(step, candidates=200)
    decode = jax.jit(functools.partial(decoding.beam_search, everything, width=4, max_tokens=5, end=0))
    decoded = decode(state, first)
    np.testing.assert_array_equal(decoded.tokens, wanted.tokens)
    np.testing.assert_allclose(decoded.scores, wanted.scores, rtol=1e-4)
    some = decoding.beam_search(functools.partial(step, candidates=60), state, first, width=4, max_tokens=5, end=0)
    assert (some.tokens[:, 0] == wanted.tokens[:, 0]).mean() > 0.6
    greedy = jax.jit(functools.partial(decoding.greedy, everything, max_tokens=5, end=0), donate_argnums=0)
    np.testing.assert_array_equal(
        greedy(jnp.zeros((3, 8)), first).tokens, decoding.greedy(exact, state, first, max_tokens=5, end=0).tokens
    )


def test_rows_that_are_not_finite_end():
    def step(state, tokens):
        nan = jnp.full((len(tokens), 2), jnp.nan)
        return state, decoding.Choices(nan, jnp.full((len(tokens), 2), -1, jnp.int32), None)

    assert decoding.greedy(step, None, jnp.array([1, 2]), max_tokens=3, end=0).lengths.tolist() == [0, 0]
    beam = decoding.beam_search(step, None, jnp.array([1]), width=2, max_tokens=3, end=0)
    assert beam.lengths.tolist() == [[0, 0]]
    assert (beam.scores == -np.inf).all()


def collapsed_by_hand(frames, blank):
    result, before = [], None
    for token in frames:
        if token not in (before, blank):
            result.append(int(token))
        before = token
    return result


def test_ctc_is_what_loops_say(rng):
    tokens = rng.integers(0, 4, (2, 30, 17))
    lengths = rng.integers(0, 18, (2, 30))
    for blank in (0, 3):
        got, counts = jax.jit(decoding.collapse_ctc, static_argnames="blank")(tokens, blank=blank, lengths=lengths)
        for at in np.ndindex(2, 30):
            wanted = collapsed_by_hand(tokens[at][: lengths[at]], blank)
            assert counts[at] == len(wanted)
            assert got[at].tolist() == wanted + [-1] * (17 - len(wanted))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first": jnp.zeros((2, 2), int)}, "`first` has shape"),
        ({"first": jnp.zeros(2)}, "`first` is float32"),
        ({"max_tokens": 0}, "`max_tokens`"),
        ({"width": 0}, "`width`"),
        ({"length_penalty": float("nan")}, "`length_penalty`"),
        ({"state": jnp.zeros((3, 1))}, "`state` has shape"),
        ({"step": 3}, "`step`"),
        ({"end": -1}, "`end`"),
    ],
)
def test_wrong_arguments(options, message):
    good = {"step": lambda s, t: (s, None), "state": None, "first": jnp.zeros(2, int), "width": 2}
    with pytest.raises((TypeError, ValueError), match=message):
        decoding.beam_search(**{**good, "max_tokens": 3, "end": 0, **options})


def test_ctc_refuses_other_shapes():
    with pytest.raises(ValueError, match="`lengths` has shape"):
        decoding.collapse_ctc(jnp.zeros((2, 3), int), lengths=jnp.zeros(3, int))
    with pytest.raises(ValueError, match="`tokens` has no dimension"):
        decoding.collapse_ctc(jnp.array(3))
