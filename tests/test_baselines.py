"""The baselines of the demo model: Kneser-Ney n-grams and xz."""

import importlib.util
import json
import lzma
import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from griffin_conformance.envelope import chain_bound

SCRIPT = Path(__file__).parents[1] / "kernels" / "demo" / "baselines.py"
SPEC = importlib.util.spec_from_file_location("baselines", SCRIPT)
baselines = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(baselines)

BOS, EOS, VOCAB = 0, 1, 7


def document(body):
    return [BOS, *body, EOS]


def skewed(seed, count=40, longest=12):
    """Documents whose tokens and repetitions are uneven, so that all counts of counts occur."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, longest, count)
    return [document((2 + (rng.random(n) ** 3 * (VOCAB - 2)).astype(int)).tolist()) for n in sizes]


def level_chain(order: int, words: int = VOCAB) -> int:
    """Roundings of a probability: at each order a discount, its sum over words, and interpolation.

    A discount is five operations, taking it from the count and dividing by the total two more; the
    weight of the lower order is a sum and a quotient; then there are a product and a sum.
    """
    return 2 * order * (5 + 2 + words + 1 + 2)


def assert_relative(found, expected, chain: int) -> None:
    """Hold numbers against others, each relative to its own size, to so many roundings in a row."""
    np.testing.assert_allclose(found, expected, rtol=chain_bound(chain, "float64"), atol=0)


bodies = st.lists(st.integers(2, VOCAB - 1), max_size=8)
corpora = st.one_of(
    st.lists(bodies.map(document), min_size=1, max_size=8),
    st.integers(0, 10_000).map(skewed),
)
orders = st.integers(1, 4)


# Modified Kneser-Ney as it is written in the paper: one model, one order, one token at a time.


def slow_discounts(counts):
    n = Counter(counts)
    if not all(n[c] for c in (1, 2, 3, 4)):
        return [0, 0.5, 1, 1.5]
    y = n[1] / (n[1] + 2 * n[2])
    found = [c - (c + 1) * y * n[c + 1] / n[c] for c in (1, 2, 3)]
    return [0, *found] if min(found) > 0 else [0, 0.5, 1, 1.5]


class Slow:
    def __init__(self, documents, order):
        self.order, self.count, self.cut = order, {}, {}
        followers = self.followers = defaultdict(set)
        for k in range(1, order + 1):
            seen, before = Counter(), defaultdict(set)
            for doc in documents:
                for i in range(1, len(doc)):
                    if i - k + 1 >= 0:
                        gram = tuple(doc[i - k + 1 : i + 1])
                        seen[gram] += 1
                        followers[gram[:-1]].add(gram[-1])
                        if i - k >= 0:
                            before[gram].add(doc[i - k])
            for gram, count in seen.items():
                full = k == order or gram[0] == BOS
                self.count[gram] = count if full else len(before[gram])
            self.cut[k] = slow_discounts(self.count[gram] for gram in seen)

    def probability(self, word, context):
        context = tuple(context)[max(len(context) - self.order + 1, 0) :]
        lower = self.probability(word, context[1:]) if context else 1 / VOCAB
        total = sum(self.count[(*context, w)] for w in self.followers[context])
        if not total:
            return lower
        cut = self.cut[len(context) + 1]

        def taken(w):
            return cut[min(self.count.get((*context, w), 0), 3)]

        weight = sum(map(taken, self.followers[context])) / total
        own = (self.count.get((*context, word), 0) - taken(word)) / total
        return own + weight * lower


@settings(max_examples=60, deadline=None)
@given(corpora, st.lists(bodies.map(document), min_size=1, max_size=3), orders)
def test_agrees_with_a_slow_implementation(train, heldout, order):
    found = baselines.KneserNey(train, VOCAB, order).probabilities(heldout)
    for n in range(1, order + 1):
        slow = Slow(train, n)
        wanted = [slow.probability(d[i], d[:i]) for d in heldout for i in range(1, len(d))]
        assert_relative(found[n - 1], wanted, level_chain(n))


def test_estimated_discounts_are_among_the_tested():
    model = baselines.KneserNey(skewed(0), VOCAB, 3)
    assert any(level.discounts.tolist() != [0, 0.5, 1, 1.5] for level in model.top)
    assert any(level.discounts.tolist() != [0, 0.5, 1, 1.5] for level in model.lower)


@settings(max_examples=60, deadline=None)
@given(corpora, st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6), orders)
def test_every_context_has_a_distribution(train, context, order):
    model = baselines.KneserNey(train, VOCAB, order)
    found = model.probabilities([[*context, word] for word in range(VOCAB)])
    last = found.reshape(order, VOCAB, len(context))[:, :, -1]
    assert last.min() > 0
    assert_relative(last.sum(axis=1), 1, level_chain(order) + VOCAB)


@settings(max_examples=30, deadline=None)
@given(corpora, st.lists(bodies.map(document), min_size=2, max_size=4))
def test_contexts_do_not_cross_documents(train, heldout):
    model = baselines.KneserNey(train, VOCAB, 4)
    apart = [model.probabilities([one]) for one in heldout]
    np.testing.assert_array_equal(model.probabilities(heldout), np.concatenate(apart, axis=1))


def test_by_hand():
    train = [document([2, 3]), document([2, 2])]
    model = baselines.KneserNey(train, 4, 3)
    assert model.grams == [3, 5, 4]
    one, two, three = model.probabilities([document([2, 3]), [3, 0]])
    # Too few counts for estimates: 1/2, 1 and 3/2 are taken from counts 1, 2 and 3.
    # Unigrams 2 2 2 3 1 1: half of the mass goes to the uniform distribution, 1/8 each.
    unigrams = [1.5 / 6 + 1 / 8, 0.5 / 6 + 1 / 8, 1 / 6 + 1 / 8, 1 / 8]
    assert_relative(one, unigrams, level_chain(1))
    # Predecessors: 2 has {0, 2}, 3 has {2}, 1 has {2, 3}; of 5, 1 + 1/2 + 1 are taken.
    p2 = p1 = 1 / 5 + 1 / 8
    p3 = 0.5 / 5 + 1 / 8
    # 0 2 came twice; 2 was followed by 3, 2 and 1; 3 by 1 only, so half is left for the unigrams.
    bigrams = [1 / 2 + p2 / 2, 0.5 / 3 + p3 / 2, 0.5 + p1 / 2, (1 / 8) / 2]
    assert_relative(two, bigrams, level_chain(2))
    # 0 2 3 and 2 3 1 came once each; the start of a document has no trigram and counts bigrams.
    trigrams = [bigrams[0], 0.5 / 2 + bigrams[1] / 2, 0.5 + bigrams[2] / 2, bigrams[3]]
    assert_relative(three, trigrams, level_chain(3))


@pytest.mark.parametrize(
    ("counts", "wanted"),
    [
        ([1, 1, 1, 1, 2, 2, 3, 4, 9], [0, 0.5, 1.25, 1]),
        ([0, 1, 1, 1, 1, 2, 2, 3, 4], [0, 0.5, 1.25, 1]),
        ([1, 1, 1, 1, 2, 2, 3, 9], [0, 0.5, 1, 1.5]),  # nothing was seen four times
        ([1, 1, 2, 3, 3, 3, 4], [0, 0.5, 1, 1.5]),  # the estimate for 2 is negative
        ([1] * 4 + [2] * 2 + [3] * 2 + [4] * 3, [0, 0.5, 1, 1.5]),  # the estimate for 3 is 0
        ([], [0, 0.5, 1, 1.5]),
    ],
)
def test_discounts(counts, wanted):
    # Five operations, of which the last is a difference from up to 3.
    found = baselines.discounts(np.array(counts, int))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=3 * chain_bound(5, "float64"))


def markov(seed, count):
    rng = np.random.default_rng(seed)
    step = np.random.default_rng(0).dirichlet(np.full(8, 0.2), (8, 8))
    found = []
    for _ in range(count):
        body = [2, 3]
        while len(body) < 40:
            body.append(2 + int(rng.choice(8, p=step[body[-2] - 2, body[-1] - 2])))
        found.append(document(body))
    return found


def test_more_data_and_longer_contexts_help():
    heldout = markov(1, 20)

    def bits(count):
        model = baselines.KneserNey(markov(2, count), 10, 3)
        return -np.log2(model.probabilities(heldout)).mean(axis=1)

    few, some, many = bits(5), bits(25), bits(125)
    assert few[2] > some[2] > many[2]
    assert many[0] > many[1] > many[2]


def test_xz_at_its_strongest(monkeypatch):
    noise = np.random.default_rng(0).bytes(5000)
    assert baselines.xz_size(noise) == len(lzma.compress(noise, preset=9 | lzma.PRESET_EXTREME))
    assert baselines.xz_size(noise + noise) - baselines.xz_size(noise) < 500

    class Long(bytes):
        def __len__(self):
            return 1 << 30

    windows = []
    monkeypatch.setattr(
        lzma, "compress", lambda data, filters: windows.append(filters[0]["dict_size"]) or b""
    )
    baselines.xz_size(Long())
    assert windows == [1 << 30]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("baselines")
    rng = np.random.default_rng(0)
    words = ["the", "small", "old", "bear", "fox", "café", "ran", "sat", "saw", "and", "then"]
    texts = [" ".join(rng.choice(words, 20)) + ".\nÄ end." for _ in range(120)]
    for name, part in (("train", texts[:100]), ("heldout", texts[100:])):
        content = "\n<|endoftext|>\n".join(part) + "\n"
        (folder / f"{name}.txt").write_text(content, encoding="utf-8")
    from griffin_kernels.xla.data import train_tokenizer

    train_tokenizer(texts, 330, folder / "tokenizer.model")
    return folder, texts[100:]


def arguments(folder, **changed):
    paths = {
        "tokenizer": "tokenizer.model",
        "train": "train.txt",
        "heldout": "heldout.txt",
    } | changed
    return [part for name, file in paths.items() for part in (f"--{name}", str(folder / file))]


def test_report(files, capsys):
    folder, heldout = files
    baselines.main([*arguments(folder), "--order", "3", "--json"])
    found = json.loads(capsys.readouterr().out)
    size = sum(len(text.encode()) for text in heldout)
    tokenizer = baselines.Tokenizer(folder / "tokenizer.model")
    tokens = sum(len(tokenizer.encode(text)) for text in heldout)  # with eos, without bos
    assert found["heldout"] == {"documents": 20, "bytes": size, "tokens": tokens}
    bits = [row["bits_per_byte"] for row in found["kneser_ney"]]
    train, test = (
        [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
        for texts in (baselines.read_documents([folder / "train.txt"]), heldout)
    )
    model = baselines.KneserNey(train, tokenizer.vocab_size, 3)
    wanted = [sum(math.log2(1 / p) for p in row) / size for row in model.probabilities(test)]
    # Each probability's error is one of its logarithm; these are summed over all tokens.
    chain = level_chain(3, tokenizer.vocab_size) + tokens + 2
    assert_relative(bits, wanted, chain)
    assert len(found["lower_discounts"]) == 2
    alone = baselines.xz_size((folder / "heldout.txt").read_bytes())
    assert found["xz"]["bytes"] == alone
    assert_relative(found["xz"]["bits_per_byte"], 8 * alone / size, 2)
    assert_relative(found["xz"]["ratio"], size / alone, 2)
    known, new = ((folder / name).read_bytes() for name in ("train.txt", "heldout.txt"))
    both = baselines.xz_size(known + b"<|endoftext|>\n" + new)
    assert found["xz_given_train"]["bytes"] == both - baselines.xz_size(known) < alone

    baselines.main([*arguments(folder), "--order", "3"])
    printed = capsys.readouterr().out
    for shown in (f"{size:,} bytes", f"{tokens:,} tokens", *(f"{b:.4f} bits/byte" for b in bits)):
        assert shown in printed


@pytest.mark.parametrize(
    "broken",
    [
        lambda folder: arguments(folder, heldout="missing.txt"),
        lambda folder: arguments(folder, tokenizer="missing.model"),
        lambda folder: arguments(folder, tokenizer="train.txt"),
        lambda folder: arguments(folder, train="tokenizer.model"),
        lambda folder: [*arguments(folder), "--order", "0"],
        lambda folder: [*arguments(folder), "--order", "many"],
        lambda folder: arguments(folder)[:-2],
    ],
)
def test_user_errors_are_one_line(files, broken, capsys):
    with pytest.raises(SystemExit) as error:
        baselines.main(broken(files[0]))
    out, err = capsys.readouterr()
    assert (error.value.code, out, err.count("\n")) == (2, "", 1)
