"""Exercises of notebook 1, a five-minute tour."""

import numpy as np
from hypothesis import strategies as st

from griffin_notebooks.exercise import exercise


@exercise(
    "1.1",
    cases=st.tuples(st.lists(st.integers(1, 60), max_size=6)),
    mistakes={
        "Without a state you count the earlier turns of each turn, but not the turn itself: that "
        "has to be read, too.": lambda turns: (
            sum(turns),
            sum(sum(turns[:k]) for k in range(len(turns))),
        ),
        "Without a state you read the whole talk once for each turn. In an early turn the later "
        "ones are not there yet.": lambda turns: (sum(turns), len(turns) * sum(turns)),
        "Without a state you count the last turn only, with all that came before it. The earlier "
        "turns were read as well.": lambda turns: (sum(turns), sum(turns)),
        "The two are in the other order: with a state first.": lambda turns: (
            sum(sum(turns[: k + 1]) for k in range(len(turns))),
            sum(turns),
        ),
        "With a state you count the last turn alone. In all, every turn is read, "
        "once.": lambda turns: (
            turns[-1] if turns else 0,
            sum(sum(turns[: k + 1]) for k in range(len(turns))),
        ),
    },
)
def tokens_read(turns):
    without, so_far = 0, 0
    for tokens in turns:
        so_far += tokens
        without += so_far  # everything up to here is read again
    return so_far, without


def _toys(seed, size, decay, length, n):
    rng = np.random.default_rng(seed)
    prompt = [int(token) for token in rng.integers(0, size, length)]
    return rng.normal(size=(size, 4)), rng.normal(size=(size, 4)), decay, prompt, n


def _write(E, U, decay, prompt, n, *, reset=False, feed=True, pick=np.argmax):
    h, chosen = 0 * E[0], []
    for token in prompt:
        h = decay * h + E[token]
    for _ in range(n):
        token = int(pick(U @ h))
        chosen.append(token)
        if feed:
            h = (0 if reset else decay) * h + E[token]
    return chosen


def _late(E, U, decay, prompt, n):
    """The chosen token is fed before it is kept, so that the first one is lost."""
    return _write(E, U, decay, prompt, n + 1)[1:]


@exercise(
    "1.2",
    cases=st.builds(
        _toys, st.integers(0, 10**6), st.integers(3, 9), st.sampled_from([0.5, 0.9]),
        st.integers(1, 6), st.integers(1, 8),
    ),
    mistakes={
        "This reads the last token of the prompt only. Read the whole prompt into h "
        "first.": lambda E, U, decay, prompt, n: _write(E, U, decay, prompt[-1:], n),
        "This forgets h whenever it has written a token. What was chosen is mixed into h, beside "
        "the past.": lambda *case: _write(*case, reset=True),
        "What was chosen is not read: h stays, and the same token comes again and "
        "again.": lambda *case: _write(*case, feed=False),
        "This takes the least likely token. argmax gives the likeliest.": lambda *case: (
            _write(*case, pick=np.argmin)
        ),
        "The prompt is part of what is returned. Return the new tokens "
        "alone.": lambda E, U, decay, prompt, n: prompt + _write(E, U, decay, prompt, n),
        "The first token that was chosen is missing, and there is one too many at the "
        "end.": _late,
    },
)  # fmt: skip
def write(E, U, decay, prompt, n):
    h = np.zeros(E.shape[1])
    for token in prompt:
        h = decay * h + E[token]
    written = []
    for _ in range(n):
        token = int((U @ h).argmax())
        written.append(token)
        h = decay * h + E[token]
    return written


def _sizes(blocks, kv_heads, head_dim, float_bytes, tokens, rest):
    per_token = 2 * blocks * kv_heads * head_dim * float_bytes
    return tokens * per_token + rest % per_token, blocks, kv_heads, head_dim, float_bytes


@exercise(
    "1.3",
    cases=st.builds(
        _sizes, st.integers(2, 40), st.integers(1, 16), st.sampled_from([64, 128, 256]),
        st.sampled_from([4, 2]), st.integers(0, 2000), st.sampled_from([12345, 1, 0]),
    ),
    mistakes={
        "This counts keys or values. A token leaves both.": lambda s, b, h, d, f: (
            s // (b * h * d * f) + 1
        ),
        "This is the last length at which the cache is not larger. One token more, and it "
        "is.": lambda s, b, h, d, f: s // (2 * b * h * d * f),
        "This rounds up. If the two are equal at some length, the cache is not yet larger "
        "there.": lambda s, b, h, d, f: -(-s // (2 * b * h * d * f)),
        "This counts one block. Every block of the transformer keeps its own keys and "
        "values.": lambda s, b, h, d, f: s // (2 * h * d * f) + 1,
        "This counts numbers, not bytes: each takes float_bytes.": lambda s, b, h, d, f: (
            s // (2 * b * h * d) + 1
        ),
        "This counts one head. There are kv_heads of them.": lambda s, b, h, d, f: (
            s // (2 * b * d * f) + 1
        ),
    },
)  # fmt: skip
def break_even(state_bytes, blocks, kv_heads, head_dim, float_bytes):
    per_token = 2 * blocks * kv_heads * head_dim * float_bytes  # keys, and values
    return state_bytes // per_token + 1
