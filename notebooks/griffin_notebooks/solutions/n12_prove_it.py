"""Exercises of notebook 12: tolerances, causes, shrinking, a law, and a verdict."""

import numpy as np
from hypothesis import strategies as st

from griffin_notebooks.exercise import exercise

values = st.integers(-40, 40).map(lambda n: n / 8)


def upwards_only(truth, rtol, atol):
    return truth * (1 + rtol) + atol


@exercise(
    "12.1",
    cases=st.tuples(
        st.lists(values, min_size=1, max_size=5).map(np.array),
        st.sampled_from([0.01, 0.1, 0.001]),
        st.sampled_from([0.01, 0.1, 0.001]),
    ),
    mistakes={
        "This lets values below zero grow towards zero: np.allclose takes rtol times the magnitude "
        "of the expected value, so that a lie upwards is as large for -3 as for 3.": upwards_only,
        "This leaves out atol, which np.allclose adds for every value. It is what lets small "
        "values be wrong altogether.": lambda truth, rtol, atol: truth + rtol * np.abs(truth),
        "This takes the larger of the two tolerances. np.allclose is more generous: it adds "
        "them.": lambda truth, rtol, atol: truth + np.maximum(atol, rtol * np.abs(truth)),
    },
)
def largest_lie(truth, rtol, atol):
    """The largest array that np.allclose(array, truth, rtol, atol) still takes for the truth."""
    return truth + atol + rtol * np.abs(truth)


@st.composite
def diagnoses(draw):
    """Results in some failing cases, what readings give there, and what is allowed."""
    C, T, N = (draw(st.integers(1, 3)) for _ in range(3))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    found = rng.standard_normal((C, T, N))
    allowed = rng.uniform(0.01, 0.1, (C, T))
    readings = {}
    for name in ("no bias", "no cap", "W keys", "not scaled")[: draw(st.integers(1, 4))]:
        # How far it lies from what was found: in the first case, in the others, over positions.
        sizes = np.full((C, T), draw(st.sampled_from([0.2, 0.5, 0.9, 3.0])))
        sizes[1:] = draw(st.sampled_from([0.2, 0.5, 0.9, 3.0]))
        if draw(st.booleans()):
            sizes[:, 1:] *= 0.1
        way = rng.standard_normal((C, T, N))
        way *= (sizes * rng.uniform(0.9, 1.1, (C, T)) * allowed / norm(way))[..., None]
        readings[name] = found + way
    return found, readings, allowed


def norm(x):
    return np.sqrt(np.sum(x * x, axis=-1))


def ratios(found, readings, allowed, over=np.max):
    return {name: over(norm(found - told) / allowed) for name, told in readings.items()}


def least(off, limit=1.0):
    name = min(off, key=lambda one: off[one])
    return name if off[name] <= limit else ""


def the_first(found, readings, allowed):
    off = ratios(found, readings, allowed)
    return next((name for name in off if off[name] <= 1), "")


@exercise(
    "12.2",
    cases=diagnoses(),
    mistakes={
        "This names the nearest reading, however far off it is. A cause that explains nothing is "
        "worse than none: give an empty name then.": lambda *a: least(ratios(*a), np.inf),
        "This looks at the first failing case alone. A reading may fit one case by chance; a cause "
        "has to explain all of them.": lambda found, readings, allowed: least(
            ratios(found[:1], {n: r[:1] for n, r in readings.items()}, allowed[:1])
        ),
        "This takes the mean over positions, in which one position far outside is hidden by many "
        "inside. Take the largest ratio.": lambda *a: least(ratios(*a, over=np.mean)),
        "This takes the first reading that explains the failures. If several do, the one that "
        "comes nearest is the likelier.": the_first,
    },
)
def likely_cause(found, readings, allowed):
    """The reading that explains all failing cases, or an empty name."""
    best, least_off = "", 1.0
    for name, told in readings.items():
        distance = np.sqrt(np.sum((found - told) ** 2, axis=-1))
        off = np.max(distance / allowed)
        if off <= least_off:
            best, least_off = name, off
    return best


class Fault(dict):
    """A list fails if it has all of some values, and no value without its guard."""

    def __call__(self, values):
        guarded = all(g in values for g, value in self["guards"] if value in values)
        return guarded and all(value in values for value in self["needs"])


@st.composite
def failing(draw):
    """A list, and a fault that shows in it."""
    values = draw(st.lists(st.integers(0, 9), min_size=1, max_size=7, unique=True))
    chosen = st.sampled_from(values)
    needs = draw(st.lists(chosen, min_size=1, max_size=3, unique=True))
    guards = []
    if len(values) > 1 and draw(st.booleans()):
        guards = [tuple(draw(st.permutations(values))[:2])]
    return values, Fault(needs=needs, guards=guards)


def in_one_pass(values, fails):
    kept = list(values)
    for value in values:
        smaller = [v for v in kept if v != value]
        kept = smaller if fails(smaller) else kept
    return kept


def only_once(values, fails):
    smaller = [values[:i] + values[i + 1 :] for i in range(len(values))]
    return next((s for s in smaller if fails(s)), list(values))


def from_the_right(values, fails):
    values = list(values)
    while values and fails(values[:-1]):
        values.pop()
    return values


def what_matters(values, fails):
    return [v for i, v in enumerate(values) if not fails(values[:i] + values[i + 1 :])]


@exercise(
    "12.3",
    cases=failing(),
    mistakes={
        "This goes through the list once. A value that could not be left out at first may become "
        "superfluous when a later one is gone: begin again after each success.": in_one_pass,
        "This stops after the first value that can be left out. Go on until nothing more can "
        "be.": only_once,
        "This takes values from the end alone. What causes a failure may stand at the end, with "
        "everything before it superfluous: try every place.": from_the_right,
        "This leaves each value out of the whole list, and drops together all that were "
        "superfluous alone. Without all of them the rest need not fail: test what "
        "remains.": what_matters,
    },
)
def shrink(values, fails):
    """The values that remain when each that can be left out has been, one at a time."""
    values, i = list(values), 0
    while i < len(values):
        smaller = values[:i] + values[i + 1 :]
        if fails(smaller):
            values, i = smaller, 0
        else:
            i += 1
    return values


class Toy(dict):
    """A model of two numbers: outputs ``y = h + taps . last inputs``, h a leaky sum."""

    def __call__(self, text, state=None):
        """Outputs (T,) of a text (T,), and the state after it."""
        taps, text = np.array(self["taps"]), np.asarray(text, np.float64)
        past, h = (np.zeros(len(taps)), 0.0) if state is None else state
        inputs, y = np.concatenate([past, text]), []
        for t, x in enumerate(text):
            h = self["decay"] * h + x
            y.append(h + float(taps @ inputs[t : t + len(taps)]))
        kept = inputs if self["keeps_past"] else np.concatenate([np.zeros(len(taps)), text])
        return np.array(y), (kept[len(kept) - len(taps) :], h)


@st.composite
def cut_texts(draw):
    """A toy, right or with a lossy cache, a text, and where it is cut."""
    toy = Toy(
        taps=draw(st.lists(values, min_size=1, max_size=3)),
        decay=draw(st.sampled_from([0.5, 0.9, 0.0])),
        keeps_past=draw(st.booleans()),
    )
    text = np.array(draw(st.lists(values, min_size=1, max_size=8)))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
    return toy, text, cuts


def pieced(model, text, cuts, fresh=False):
    state, parts = None, []
    for piece in np.split(text, cuts):
        y, state = model(piece, None if fresh else state)
        parts.append(y)
    return np.concatenate(parts) - model(text, None)[0]


@exercise(
    "12.4",
    cases=cut_texts(),
    mistakes={
        "This begins every piece without a state, so that right models break the law too. Give "
        "each piece the state that the piece before it left.": lambda m, x, c: np.max(
            np.abs(pieced(m, x, c, fresh=True))
        ),
        "This compares the last output alone. A lost cache is often felt for two or three tokens "
        "and then forgotten: look at all of them.": lambda m, x, c: abs(pieced(m, x, c)[-1]),
        "This looks for the largest difference upwards. One that lies below the truth is as "
        "wrong: take magnitudes first.": lambda m, x, c: np.max(pieced(m, x, c)),
        "This takes the mean difference, in which one wrong token among thousands vanishes. Take "
        "the largest.": lambda m, x, c: np.mean(np.abs(pieced(m, x, c))),
    },
)
def largest_difference(model, text, cuts):
    """How far outputs move if a text is read in pieces, cut before these tokens."""
    whole, _ = model(text, None)
    state, parts = None, []
    for piece in np.split(text, cuts):
        outputs, state = model(piece, state)
        parts.append(outputs)
    return np.max(np.abs(np.concatenate(parts) - whole))


@exercise(
    "12.5",
    mistakes={
        "PAD-1 is the law that is broken, and says that padding changes something. The question is "
        "which part of the model lets it in: what do the three kinds of model tell?": lambda: (
            "PAD-1"
        ),
        "ATTN-8 is about padding in the window of attention. A model of attention alone does "
        "everything right here.": lambda: "ATTN-8",
        "CONV-3 is about another document before this one. There is one document in each row; what "
        "stands before it is padding.": lambda: "CONV-3",
        "CONV-2 is about what is carried from call to call. There is one call here, and without "
        "padding everything is right.": lambda: "CONV-2",
        "BATCH-1 would be broken if a row's neighbour mattered. Padding the row alone, without any "
        "neighbour, breaks it as well.": lambda: "BATCH-1",
    },
)
def clause():
    """Padding enters the convolution, which alone looks at columns and not at positions."""
    return "CONV-5"
