"""Exercises of notebook 7: pieces to text, a dialogue as text, top-p, the draw, perplexity."""

import itertools

import numpy as np
from hypothesis import strategies as st

from griffin_notebooks.exercise import exercise


def _as_bytes(character: str) -> list[str]:
    return [f"<0x{byte:02X}>" for byte in character.encode()]


WORDS = st.sampled_from(["▁", "▁the", "▁cat", "s", "▁sat", ".", "\n", "gr"]).map(lambda w: [w])
CHARACTERS = st.sampled_from("7é€語🦁").map(_as_bytes)
PIECES = st.lists(st.one_of(WORDS, CHARACTERS), max_size=8).map(
    lambda parts: list(itertools.chain(*parts))
)


def _each(pieces, of_byte):
    """Text of pieces, one by one, each byte on its own."""
    return "".join(
        of_byte(int(piece[3:5], 16)) if piece.startswith("<0x") else piece.replace("▁", " ")
        for piece in pieces
    )


@exercise(
    "7.1",
    cases=PIECES.map(lambda pieces: (pieces,)),
    mistakes={
        "This makes each byte a character of its own, as chr() does: é comes out as two wrong "
        "letters. Bytes are UTF-8, and one character may need up to four of them.": (
            lambda pieces: _each(pieces, chr)
        ),
        "This decodes each byte alone, and a byte of é is no valid text. Collect bytes first, and "
        "decode them together.": (
            lambda pieces: _each(pieces, lambda byte: bytes([byte]).decode(errors="replace"))
        ),
        "This leaves out the byte pieces: text that the vocabulary has no piece for would be "
        "lost.": lambda pieces: _each(pieces, lambda byte: ""),
        "This keeps the mark ▁ (U+2581): it stands for a space.": (
            lambda pieces: pieces_to_text.solution(pieces).replace(" ", "▁")
        ),
        "This takes a space away in front: Gemma's vocabulary adds none there, so a space at the "
        "beginning belongs to the text.": (
            lambda pieces: pieces_to_text.solution(pieces).removeprefix(" ")
        ),
    },
)
def pieces_to_text(pieces):
    raw = b""
    for piece in pieces:
        if piece.startswith("<0x"):
            raw += bytes([int(piece[3:5], 16)])
        else:
            raw += piece.replace("▁", " ").encode()
    return raw.decode()


SAID = st.sampled_from(["Hi!", "Knock knock.", " Who's there?\n", "Tell me a story.", "  Yes"])


@st.composite
def _dialogues(draw):
    messages = []
    if draw(st.booleans()):
        messages.append(("system", draw(SAID)))
    turns = range(draw(st.sampled_from([1, 3, 5])))
    messages += [(("user", "assistant")[i % 2], draw(SAID)) for i in turns]
    return (messages,)


def _rendered(
    messages, names=("user", "model"), end="<end_of_turn>\n", last="<start_of_turn>model\n",
    clean=str.strip, forget=True,
):  # fmt: skip
    text = system = ""
    for role, content in messages:
        if role == "system":
            system = clean(content) + "\n\n"
            continue
        front = system if role == "user" else ""
        name = names[role == "assistant"]
        text += f"<start_of_turn>{name}\n{front}{clean(content)}{end}"
        if forget:
            system = ""
    return text + last


def _system_apart(messages):
    first = messages[0]
    apart = first[0] == "system"
    head = f"<start_of_turn>system\n{first[1].strip()}<end_of_turn>\n" if apart else ""
    return head + _rendered(messages[apart:])


@exercise(
    "7.2",
    cases=_dialogues(),
    mistakes={
        "This gives the system text a turn of its own: Gemma has no such role. It stands in front "
        "of the first user turn, with an empty line between.": _system_apart,
        "This repeats the system text in every user turn: it is said once, in the first.": (
            lambda messages: _rendered(messages, forget=False)
        ),
        "This calls the model 'assistant': in this format its turns are named 'model'.": (
            lambda messages: _rendered(messages, names=("user", "assistant"))
        ),
        "This ends after the last message: nobody has told the model that it is its turn. Open "
        "one for it.": lambda messages: _rendered(messages, last=""),
        "This puts no line break behind <end_of_turn>: the model has only seen turns that begin "
        "on a line of their own.": lambda messages: _rendered(messages, end="<end_of_turn>"),
        "This keeps white space around the messages: the format strips it.": (
            lambda messages: _rendered(messages, clean=str)
        ),
    },
)
def render(messages):
    text = system = ""
    for role, content in messages:
        content = content.strip()
        if role == "system":
            system = content + "\n\n"
            continue
        name = "user" if role == "user" else "model"
        text += f"<start_of_turn>{name}\n{system}{content}<end_of_turn>\n"
        system = ""
    return text + "<start_of_turn>model\n"


@st.composite
def _distributions(draw):
    """Probabilities, and a top_p that lies half-way between two sums of any of them."""
    weights = draw(st.lists(st.integers(0, 5), min_size=1, max_size=8).filter(any))
    total = sum(weights)
    half = draw(st.integers(0, total - 1)) + 0.5
    return np.array(weights) / total, half / total


def _kept(p, count):
    """The first ``count`` of an order of tokens, by falling probability, made to sum to one."""
    order = np.argsort(-p, kind="stable")[:count]
    kept = np.zeros_like(p)
    kept[order] = p[order]
    return kept / kept.sum()


def _falling_sums(p):
    return np.cumsum(np.sort(p)[::-1])


def _as_they_come(p, top_p):
    kept = np.where(np.cumsum(p) - p < top_p, p, 0)
    return kept / kept.sum()


def _from_the_least(p, top_p):
    order = np.argsort(p, kind="stable")
    kept = np.zeros_like(p)
    count = int(np.sum(np.cumsum(p[order]) < top_p)) + 1
    kept[order[:count]] = p[order[:count]]
    return kept / kept.sum()


@exercise(
    "7.3",
    cases=_distributions(),
    mistakes={
        "This leaves out the token with which the sum first reaches top_p: what is kept then sums "
        "to less than top_p.": (
            lambda p, top_p: _kept(p, max(int(np.sum(_falling_sums(p) <= top_p)), 1))
        ),
        "What is kept no longer sums to one: divide by its sum, or you cannot draw from it.": (
            lambda p, top_p: np.where(nucleus.solution(p, top_p) > 0, p, 0)
        ),
        "This adds up tokens in the order of their ids: begin with the most probable one.": (
            _as_they_come
        ),
        "Of equally probable tokens this keeps the higher id: argsort(p)[::-1] turns equals round "
        "as well. Sort -p, and stably.": (
            lambda p, top_p: _kept(p[::-1], int(np.sum(_falling_sums(p) < top_p)) + 1)[::-1]
        ),
        "This begins with the least probable tokens: sort by falling probability.": (
            _from_the_least
        ),
        "The right probabilities in the wrong places: they come sorted, and index i is no longer "
        "token i.": lambda p, top_p: np.sort(nucleus.solution(p, top_p))[::-1],
        "This keeps tokens at least top_p times as probable as the best. That is min-p: top-p "
        "looks at the sum.": (
            lambda p, top_p: np.where(p >= top_p * p.max(), p, 0)
            / p[p >= top_p * p.max()].sum()
        ),
    },
)  # fmt: skip
def nucleus(p, top_p):
    order = np.argsort(-p, kind="stable")  # of equals the lower id first
    before = np.cumsum(p[order]) - p[order]  # the sum of those before
    keep = order[before < top_p]
    kept = np.zeros_like(p)
    kept[keep] = p[keep]
    return kept / kept.sum()


@st.composite
def _draws(draw):
    """Small whole weights and a number of sixteenths: every sum and product is exact."""
    weights = draw(st.lists(st.integers(0, 4), min_size=1, max_size=7).filter(any))
    return np.array(weights, float), draw(st.integers(0, 15)) / 16


@exercise(
    "7.4",
    cases=_draws(),
    mistakes={
        "At a boundary this takes the token before it, and u = 0 always gives token 0, even if its "
        "weight is zero. A token owns its left end: from (not to) its left end up.": (
            lambda weights, u: int(np.searchsorted(np.cumsum(weights), u * weights.sum()))
        ),
        "This takes u for a place on the line, but the line is as long as all weights together: "
        "scale u by their sum.": (
            lambda weights, u: int(np.searchsorted(np.cumsum(weights), u, side="right"))
        ),
        "This takes the largest weight whatever u is: that is greedy, not a draw.": (
            lambda weights, u: int(np.argmax(weights))
        ),
        "This is one token early: it counts the ends passed, and then takes one off.": (
            lambda weights, u: pick.solution(weights, u) - 1
        ),
        "This draws uniformly among the tokens: a token's stretch should be as long as its "
        "weight.": lambda weights, u: int(u * len(weights)),
    },
)
def pick(weights, u):
    ends = np.cumsum(weights)  # where each token's stretch ends
    return int(np.searchsorted(ends, u * ends[-1], side="right"))


@st.composite
def _predictions(draw):
    T, V = draw(st.integers(2, 6)), draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    far = draw(st.sampled_from([0.0, 0.0, 0.0, 1000.0]))
    return rng.normal(size=(T, V)).round(2) * 2 + far, rng.integers(0, V, T)


def _log_softmax(logits):
    z = logits - logits.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def _told(logits, tokens):
    return _log_softmax(logits)[np.arange(len(tokens)), tokens]


def _overflows(logits, tokens):
    with np.errstate(all="ignore"):
        p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        return float(np.exp(-np.log(p[np.arange(len(tokens) - 1), tokens[1:]]).mean()))


@exercise(
    "7.5",
    cases=_predictions(),
    mistakes={
        "This asks row t about token t, which the model has just read: its prediction is about "
        "token t + 1.": lambda logits, tokens: float(np.exp(-_told(logits, tokens).mean())),
        "This asks row t about the token before it: row t predicts token t + 1.": (
            lambda logits, tokens: float(np.exp(-_told(logits[1:], tokens[:-1]).mean()))
        ),
        "This divides by all tokens, but the first one was predicted by nobody.": (
            lambda logits, tokens: float(
                np.exp(-_told(logits[:-1], tokens[1:]).sum() / len(tokens))
            )
        ),
        "This averages probabilities: average their logarithms (one over the geometric mean).": (
            lambda logits, tokens: float(1 / np.exp(_told(logits[:-1], tokens[1:])).mean())
        ),
        "This is the mean surprise in nats: perplexity is e to the power of it.": (
            lambda logits, tokens: float(-_told(logits[:-1], tokens[1:]).mean())
        ),
        "With logits near 1000 exp overflows, and inf / inf is no number: subtract each row's "
        "largest logit first, which changes no probability.": _overflows,
    },
)
def perplexity(logits, tokens):
    z = logits - logits.max(axis=-1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    steps = np.arange(len(tokens) - 1)
    return float(np.exp(-log_p[steps, tokens[1:]].mean()))
