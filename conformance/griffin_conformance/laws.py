"""Level 2, the model's laws: the same documents give the same results however they come.

Except for :func:`whole_texts`, a law compares the backend with itself, so that a fault in the
mathematics does not hide where the bookkeeping is right, nor the other way round.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from griffin_conformance.alone import Alone, as_if_alone, model_of, profile_of
from griffin_conformance.backends import Backend
from griffin_conformance.checks import Violation, check
from griffin_conformance.envelope import Comparison, Envelope
from griffin_conformance.layouts import Case, Layout, Run, execute
from griffin_conformance.strategies import (
    any_world,
    cases,
    layouts,
    pooled,
    row_counts,
    sometimes_long,
)

__all__: list[str] = []


def whole_cases(scope) -> st.SearchStrategy[Case]:
    return sometimes_long(scope).map(lambda world: Case(world, Layout((((0, world.lengths[0]),),))))


@check(
    "L2",
    whole_cases,
    strata=(
        "crosses the window",
        "more than 256 tokens",
        "one head",
        "all recurrent",
        "all attention",
        "no soft cap",
        "lru_width is not width",
        "several key-value heads",
        "odd width",
    ),
    weight=2,
    clauses=("CALL-11", "BLOCK-3", "BLOCK-4", "EMBED-2"),
    oracle=True,
)
def whole_texts(backend: Backend, case: Case) -> Sequence[Comparison]:
    """A text read in one call gives the oracle's residual streams and logits."""
    model = model_of(backend, case)
    history = case.world.history(profile_of(backend), 0)
    tokens = case.world.tokens(0)[None]
    results = []
    if hasattr(model, "hidden_states"):
        inner = [f"blocks.{i}.residual" for i in range(case.world.config.depth - 1)]
        names, streams = ["embedding", *inner, "final_norm"], model.hidden_states(tokens)
        if len(streams) != len(names):
            raise Violation(f"hidden_states gave {len(streams)} arrays, expected {len(names)}")
        for name, stream in zip(names, streams, strict=True):
            results.append(history[name].compare(name, np.asarray(stream)[0]))
    else:
        results.append(Comparison("the residual streams", 0.0, 0, compared=False))
    logits, _ = model(tokens)
    results.append(history["logits"].compare("logits", np.asarray(logits)[0]))
    return results


@st.composite
def changes(draw, scope, letters: str | None = None) -> Case:
    """A text, and which of its tokens is changed."""
    world = draw(any_world(scope, letters) if letters else pooled(scope))
    if letters:
        # One block of attention, so that what a token sees is seen in its logits alone.
        config = world.config.replace(depth=1)
        world = replace(world, config=config)
    n = world.lengths[0]
    return Case(world, Layout((((0, n),),)), (draw(st.integers(0, n - 1)),))


def with_a_change(backend: Backend, case: Case) -> tuple[Run, Run, int, NDArray]:
    """Runs of a text without and with its token changed, where that is, and the changed text."""
    (at,) = case.extra
    tokens = case.world.tokens(0)[None]
    changed = tokens.copy()
    changed[0, at] = (changed[0, at] + 1) % case.world.config.vocab_size
    before, after = (
        Run(np.asarray(model_of(backend, case)(t)[0], np.float64), None) for t in (tokens, changed)
    )
    return before, after, at, changed[0]


@check("L2", lambda scope: changes(scope), clauses=("ATTN-3",))
def nothing_sees_the_future(backend: Backend, case: Case) -> Sequence[Comparison]:
    """Logits do not depend on later tokens."""
    before, after, at, _ = with_a_change(backend, case)
    envelope = case.world.history(profile_of(backend), 0)["logits"].rows(slice(at))
    name = f"logits before token {at}, which is changed"
    return [envelope.between(name, after.logits[0, :at], before.logits[0, :at])]


@check(
    "L2",
    lambda scope: changes(scope, "A"),
    strata=("crosses the window",),
    clauses=("ATTN-1", "ATTN-2"),
)
def the_window_shows_w_past_tokens(backend: Backend, case: Case) -> Sequence[Comparison]:
    """Attention sees a token and the W before it in its document, W + 1 keys, and none beyond."""
    before, after, at, changed = with_a_change(backend, case)
    last = at + case.world.config.window
    history = case.world.history(profile_of(backend), 0)["logits"]
    beyond = slice(last + 1, None)
    results = [
        history.rows(beyond).between(
            f"logits more than W tokens behind token {at}, which is changed",
            after.logits[0, beyond],
            before.logits[0, beyond],
        )
    ]
    if at < last < len(changed):
        moved = case.world.logits_of(changed[: last + 1], profile_of(backend)).rows([last])
        results.append(_change_is_seen(history.rows([last]), before, after, last, moved))
    return results


def _change_is_seen(
    envelope: Envelope, before: Run, after: Run, last: int, moved: Envelope
) -> Comparison:
    """The logits W tokens behind a change move as the oracle's do."""
    step = after.logits[0, [last]] - before.logits[0, [last]]
    # A difference of two runs has the rounding of both, and either text may be the harder one.
    both = replace(moved, allowed=envelope.allowed + moved.allowed)
    name = f"change of the logits at token {last}, W tokens behind the changed one"
    return both.compare(name, envelope.truth + step)


@st.composite
def decoding_cases(draw, scope) -> Case:
    """A prompt in one call, then tokens one by one."""
    world = draw(pooled(scope))
    n = draw(st.integers(2, world.lengths[0]))
    prompt = draw(st.integers(max(n - 12, 1), n - 1))
    told = draw(st.booleans())
    return Case(world, Layout((((0, n),),), (), tuple(range(prompt, n))), (told,))


@check(
    "L2",
    decoding_cases,
    strata=("crosses the window", "call of 1 token"),
    clauses=("CALL-2", "CALL-3", "ATTN-7"),
    parts={"attention": "ATTN-7", "recurrence": "CALL-2", "convolution": "CONV-2"},
)
def decoding_continues_a_prompt(backend: Backend, case: Case) -> Sequence[Comparison]:
    """A prompt and then one token at a time give what the whole text gives.

    Whether positions are told or not: by default a row goes on from its state.
    """
    told = case.extra[0]
    run = execute(model_of(backend, case), case, tell_positions=told)
    try:
        return Alone(backend, case).compare(run, case)
    except Violation as violation:
        raise Violation(str(violation), violation.clause if told else "CALL-3") from None


@check(
    "L2",
    lambda scope: cases(scope, cut=True, long=True),
    strata=("crosses the window", "call of 1 token", "call of 2 tokens", "call of 3 tokens"),
    weight=2,
    clauses=("CALL-1", "CONV-2", "ATTN-7"),
    parts={"attention": "ATTN-7", "recurrence": "CALL-1", "convolution": "CONV-2"},
)
def any_chunking(backend: Backend, case: Case) -> Sequence[Comparison]:
    """A text cut into calls in any way, some without tokens, gives what it gives whole."""
    return as_if_alone(backend, case)


@check(
    "L2",
    lambda scope: cases(scope, documents=(2, 5), short_end=True, long=True),
    strata=("reset inside a call", "last document of 1-2 tokens", "crosses the window"),
    clauses=("DOC-1", "DOC-2", "CONV-3", "ATTN-6", "RGLRU-5", "ROPE-5"),
    parts={"attention": "ATTN-6", "recurrence": "RGLRU-5", "convolution": "CONV-3"},
)
def packed_documents(backend: Backend, case: Case) -> Sequence[Comparison]:
    """Documents that share a row give what they give apart; position 0 starts one."""
    return as_if_alone(backend, case)


@st.composite
def packed_then_decoded(draw, scope) -> Case:
    """Packed documents in one call, of which the last goes on token by token."""
    world = draw(pooled(scope))
    layout = draw(layouts(world, documents=(1, 3), short_end=True))
    *row, (document, n) = layout.rows[0]
    more = draw(st.integers(1, min(4, world.lengths[document] - 1)))
    n = min(n, world.lengths[document] - more)
    prompt = sum(k for _, k in row) + n
    row.append((document, n + more))
    return Case(world, Layout((tuple(row),), (), tuple(range(prompt, prompt + more))), (n,))


@check(
    "L2",
    packed_then_decoded,
    strata=("call of 1 token",),
    clauses=("DOC-3", "CONV-4"),
    parts={"attention": "ATTN-6", "recurrence": "RGLRU-5", "convolution": "CONV-4"},
)
def decoding_continues_packed_documents(backend: Backend, case: Case) -> Sequence[Comparison]:
    """After packed documents, decoding continues the last, also if it had one or two tokens."""
    return as_if_alone(backend, case)


@check(
    "L2",
    lambda scope: cases(scope, rows=(1, 3), pad="left"),
    strata=("padding on the left",),
    clauses=("PAD-1", "CONV-5"),
    parts={"attention": "ATTN-8", "recurrence": "PAD-1", "convolution": "CONV-5"},
)
def padding_on_the_left(backend: Backend, case: Case) -> Sequence[Comparison]:
    """Padding before a text changes nothing, and its own logits are 0."""
    return as_if_alone(backend, case)


@st.composite
def padded_then_decoded(draw, scope) -> Case:
    """Rows of several lengths with padding on the left, which go on token by token."""
    world = draw(pooled(scope))
    rows = tuple(
        ((draw(st.integers(0, 2)), draw(st.integers(1, 4))),)
        for _ in range(draw(row_counts(scope, 2, 3)))
    )
    width = max(n for ((_, n),) in rows)
    more = draw(st.integers(1, 2))
    pads = tuple((0,) * (width - n) for ((_, n),) in rows)
    grown = tuple(((d, min(n + more, world.lengths[d])),) for ((d, n),) in rows)
    total = max(n + len(p) for (((_, n),), p) in zip(grown, pads, strict=True))
    return Case(world, Layout(grown, pads, tuple(range(width, total))))


@check(
    "L2",
    padded_then_decoded,
    strata=("padding on the left", "rows of several lengths"),
    clauses=("PAD-1", "CONV-5"),
    parts={"attention": "ATTN-8", "recurrence": "PAD-1", "convolution": "CONV-5"},
)
def decoding_continues_padded_rows(backend: Backend, case: Case) -> Sequence[Comparison]:
    """Short prompts padded on the left to one length are continued as each would be alone."""
    return as_if_alone(backend, case)


@check(
    "L2",
    lambda scope: cases(scope, pad="anywhere", documents=(1, 3), cut=True),
    strata=("padding inside a row", "reset inside a call"),
    clauses=("PAD-2", "PAD-3", "PAD-4", "ATTN-8", "ROPE-5"),
    parts={"attention": "ATTN-8", "recurrence": "PAD-2", "convolution": "CONV-5"},
)
def padding_anywhere(backend: Backend, case: Case) -> Sequence[Comparison]:
    """Padding changes nothing wherever it stands, and its own logits are 0."""
    return as_if_alone(backend, case)


@check(
    "L2",
    lambda scope: cases(scope, rows=(2, 4), pad="anywhere", documents=(0, 3), cut=True, many=True),
    strata=(
        "rows of several lengths",
        "more than 8 rows",
        "reset inside a call",
        "padding inside a row",
        "last document of 1-2 tokens",
    ),
    clauses=("BATCH-1", "BATCH-2"),
)
def rows_are_independent(backend: Backend, case: Case) -> Sequence[Comparison]:
    """A row of a batch, even an empty one, depends on none of the others."""
    return as_if_alone(backend, case)
