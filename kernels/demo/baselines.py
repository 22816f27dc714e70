#!/usr/bin/env python3
r"""What the demo model is judged against: n-grams and xz, in held-out bits per byte.

    python kernels/demo/baselines.py --tokenizer tokenizer.model --train train.txt \
        --heldout heldout.txt [--order 5] [--json]

The n-gram models are interpolated modified Kneser-Ney (Chen and Goodman 1999) over the same tokens
as the demo model: every token behind ``<bos>`` is predicted, ``<eos>`` included, and no context
crosses a document. The total of -log2 p is divided by the UTF-8 bytes of the held-out documents, as
in training. xz compresses the held-out file alone, and behind the training file with a dictionary
that covers both, where only what the held-out file adds is counted.
"""

import argparse
import json
import lzma
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

# A checkout works without installation; where the packages are installed, those are found first.
sys.path.extend(str(Path(__file__).resolve().parents[i]) for i in (2, 1))

from griffin_kernels.xla.data import SEPARATOR, read_documents
from griffin_np.errors import GriffinError
from griffin_np.tokenizer import Tokenizer


def discounts(counts: np.ndarray) -> np.ndarray:
    """What to take from counts 0, 1, 2, and 3 or more, estimated from counts of counts.

    The estimate needs n-grams that were seen exactly once, twice, three and four times. Where one
    kind is missing, or an estimate is not positive and would leave nothing for unseen n-grams, all
    three are the fixed 0.5, 1 and 1.5, as in KenLM.

    Parameters
    ----------
    counts : (grams,) integers
        How often each distinct n-gram of one order was counted.

    Returns
    -------
    (4,) float64, element c at most c
    """
    n1, n2, n3, n4 = n = np.bincount(np.minimum(counts, 5), minlength=6)[1:5]
    if n.all():
        y = n1 / (n1 + 2 * n2)
        found = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
        if found[1:].min() > 0:
            return found
    return np.array([0, 0.5, 1, 1.5])


class Level(NamedTuple):
    """One order of a model: p(gram | context) = mass[gram] + backoff[context] * lower order.

    Both arrays have one element more than there are grams and contexts, so that the id -1 of an
    unseen one finds what it needs there: no mass, and a lower order with weight 1.
    """

    mass: np.ndarray  # (grams + 1,)
    backoff: np.ndarray  # (contexts + 1,)
    discounts: np.ndarray  # (4,)

    @classmethod
    def estimate(cls, counts: np.ndarray, contexts: np.ndarray, size: int) -> "Level":
        """Discount ``counts`` of grams (grams,) whose ``contexts`` (grams,) are below ``size``."""
        found = discounts(counts)
        taken = found[np.minimum(counts, 3)]
        total = np.bincount(contexts, counts, size)
        divisor = np.maximum(total, 1)  # a context that only ends documents has no total
        backoff = np.where(total > 0, np.bincount(contexts, taken, size) / divisor, 1)
        mass = (counts - taken) / divisor[contexts]
        return cls(np.append(mass, 0), np.append(backoff, 1), found)

    def interpolate(self, grams: np.ndarray, contexts: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Probabilities (T,) from ids (T,) and the probabilities of the order below (T,)."""
        return self.mass[grams] + self.backoff[contexts] * lower


class KneserNey:
    """Interpolated modified Kneser-Ney models of the orders 1 to ``order``.

    A model of order n counts occurrences at order n, and below it the distinct tokens in front of
    a gram; a gram at the start of a document has none, so there its occurrences count. Below the
    unigrams is the uniform distribution over the vocabulary. All orders share their lower levels,
    so that one object holds ``order`` complete models.

    Parameters
    ----------
    documents : sequences of token ids below ``vocab_size``
        Each from its beginning token, which is context only, to its end token.
    vocab_size : int
    order : int

    Attributes
    ----------
    grams : (order,) list of int, distinct n-grams of each order
    top, lower : (order,), (order - 1,) list of Level
        From occurrences and from distinct predecessors. The model of order n is made of
        ``lower[: n - 1]`` and ``top[n - 1]``.
    """

    def __init__(self, documents: Sequence[Sequence[int]], vocab_size: int, order: int = 5):
        self.vocab_size = vocab_size
        self.grams: list[int] = []
        self.top: list[Level] = []
        self.lower: list[Level] = []
        self._keys: list[np.ndarray] = []
        tokens, age = _join(documents)
        ids, sizes = np.zeros_like(tokens), [1]  # of the only 0-gram
        for n in range(1, order + 1):
            # The id of an n-gram is the rank of (id of its first n - 1 tokens, last token): never
            # larger than the corpus, so keys fit into 64 bits at any order and vocabulary.
            ends = np.flatnonzero(age >= n - 1)
            keys = np.roll(ids, 1)[ends] * vocab_size + tokens[ends]
            keys, first, ranks = np.unique(keys, return_index=True, return_inverse=True)
            if n > 1:  # each distinct n-gram is one predecessor of the shorter gram that ends it
                counts = np.bincount(ids[ends[first]], minlength=sizes[-1])
                counts += np.bincount(ids[(age == n - 2) & (age > 0)], minlength=sizes[-1])
                self.lower.append(Level.estimate(counts, self._keys[-1] // vocab_size, sizes[-2]))
            counts = np.bincount(ranks[age[ends] > 0], minlength=len(keys))
            self.top.append(Level.estimate(counts, keys // vocab_size, sizes[-1]))
            self.grams.append(int(np.count_nonzero(counts)))
            self._keys.append(keys)
            sizes.append(len(keys))
            ids = np.full_like(ids, -1)
            ids[ends] = ranks

    def probabilities(self, documents: Sequence[Sequence[int]]) -> np.ndarray:
        """Probability of every token but the first of each document, at each order.

        Returns
        -------
        (order, predictions) float64
        """
        tokens, age = _join(documents)
        ids = np.zeros_like(tokens)
        below = np.full(len(tokens), 1 / self.vocab_size)
        rows = []
        for n, (keys, top) in enumerate(zip(self._keys, self.top, strict=True), start=1):
            contexts = np.where(age >= n - 1, np.roll(ids, 1), -1)
            wanted = contexts * self.vocab_size + tokens  # negative, so never found, behind a -1
            keys = np.append(keys, np.iinfo(np.int64).max)  # every search ends inside
            ids = np.searchsorted(keys, wanted)
            ids[keys[ids] != wanted] = -1
            rows.append(top.interpolate(ids, contexts, below)[age > 0])
            if n <= len(self.lower):
                below = self.lower[n - 1].interpolate(ids, contexts, below)
        return np.stack(rows)


def _join(documents: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """All tokens (T,) int64, and the position (T,) of each in its own document."""
    sizes = np.array([len(document) for document in documents])
    tokens = np.concatenate([np.asarray(document, np.int64) for document in documents])
    return tokens, np.arange(len(tokens)) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def xz_size(data: bytes) -> int:
    """Bytes of ``data`` in xz at its strongest preset, with a dictionary that covers all of it."""
    window = max(len(data), 64 << 20)  # 64 MiB is the preset's own
    strongest = {"id": lzma.FILTER_LZMA2, "preset": lzma.PRESET_EXTREME | 9, "dict_size": window}
    return len(lzma.compress(data, filters=[strongest]))


def report(tokenizer: Tokenizer, train: Sequence[str], heldout: Sequence[str], order: int) -> dict:
    """Every figure, ready for JSON. Token counts are of predicted tokens."""
    found: dict = {}
    ids, files = [], []
    for name, texts in (("train", train), ("heldout", heldout)):
        ids.append([[*x, tokenizer.eos_id] for x in tokenizer.encode_batch(texts)])
        files.append((f"\n{SEPARATOR}\n".join(texts) + "\n").encode())
        found[name] = {
            "documents": len(texts),
            "bytes": sum(len(text.encode()) for text in texts),
            "tokens": sum(len(x) - 1 for x in ids[-1]),
        }

    size = found["heldout"]["bytes"]
    model = KneserNey(ids[0], tokenizer.vocab_size, order)
    bits = -np.log2(model.probabilities(ids[1])).sum(axis=1)
    found["kneser_ney"] = [
        {
            "order": n + 1,
            "grams": model.grams[n],
            "discounts": model.top[n].discounts[1:].tolist(),
            "bits_per_byte": float(bits[n] / size),
        }
        for n in range(order)
    ]
    found["lower_discounts"] = [level.discounts[1:].tolist() for level in model.lower]

    both = f"{SEPARATOR}\n".encode().join(files)
    packed = {"xz": xz_size(files[1]), "xz_given_train": xz_size(both) - xz_size(files[0])}
    for name, count in packed.items():
        found[name] = {"bytes": count, "ratio": size / count, "bits_per_byte": 8 * count / size}
    return found


def table(found: dict) -> str:
    """The report in columns for a terminal."""
    rows = []
    for name in ("train", "heldout"):
        about = f"{found[name]['documents']:,} documents, {found[name]['tokens']:,} tokens"
        rows.append((name, about, f"{found[name]['bytes']:,} bytes"))
    for row in found["kneser_ney"]:
        taken = " ".join(f"{d:.2f}" for d in row["discounts"])
        about = f"{row['grams']:,} n-grams, discounts {taken}"
        rows.append((f"{row['order']}-gram", about, f"{row['bits_per_byte']:.4f} bits/byte"))
    for name, label in (("xz", "xz alone"), ("xz_given_train", "xz given train")):
        about = f"{found[name]['bytes']:,} bytes, ratio {found[name]['ratio']:.2f}"
        rows.append((label, about, f"{found[name]['bits_per_byte']:.4f} bits/byte"))
    return "\n".join(f"{label:16}{about:48}{amount:>18}" for label, about, amount in rows)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; a user's error is one line on stderr and exit code 2."""
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="SentencePiece tokenizer.model")
    parser.add_argument("--train", required=True, help="text to learn from")
    parser.add_argument("--heldout", required=True, help="text to predict")
    parser.add_argument("--order", type=int, default=5, help="longest n-gram (5)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    args = parser.parse_args(argv)
    if args.order < 1:
        parser.error(f"--order is {args.order}; expected at least 1")
    try:
        tokenizer = Tokenizer(args.tokenizer)
        train, heldout = (read_documents([path]) for path in (args.train, args.heldout))
    except (GriffinError, OSError) as error:
        parser.error(str(error))
    if min(tokenizer.bos_id, tokenizer.eos_id) < 0:
        parser.error(f"{args.tokenizer} lacks a token for the beginning or the end of a document")
    found = report(tokenizer, train, heldout, args.order)
    print(json.dumps(found, indent=2) if args.json else table(found))


if __name__ == "__main__":
    main()
