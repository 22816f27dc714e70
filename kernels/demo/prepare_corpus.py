#!/usr/bin/env python3
"""Turn folders of stories into the demo model's training and held-out text.

    python kernels/demo/prepare_corpus.py tinystories.txt storybooks_ccby.txt --out FOLDER

Input and output are UTF-8 text with documents separated by a line ``<|endoftext|>``. Every
document whose hash falls into the hold-out fraction goes to ``heldout.txt`` and nowhere else; all
others go to ``train.txt``. A share of the training stories is repeated as a dialogue, so that the
model also learns the turn format: a request made from words of the story, then the story itself,
sometimes in two turns. Everything depends on the text alone: the same input gives the same output.
"""

import argparse
import hashlib
import random
import re
from collections import Counter
from pathlib import Path

SEPARATOR = "<|endoftext|>"
START, END = "<start_of_turn>", "<end_of_turn>"
CONTINUE = (
    "What happened next?",
    "And then?",
    "Please go on.",
    "Tell me more.",
    "How does it end?",
)
COMMON = frozenset(
    """
    a about after again all am an and are as asked at away back be because bed best better
    big but came can could day did do down every felt find first for found friend friends
    from fun gave get go good got had happy has have he help her here him his home house how
    i in into is it just know like little liked live lived long look looked lot made make
    many me more most mother much my name named near new nice no not now of old on once one
    or other our out over people place play played proud put ran said same sad saw say she
    so some something special story sun take that the their them then there these they thing
    things this thought time to together told too took tried two until up upon us very walk
    want wanted was way we well went were what when where while who will with would you your
    even never always also right mom dad water
    """.split()
)


def documents(path: Path) -> list[str]:
    """Documents of one file, cleaned: no blank lines, no trailing blanks, no empty documents."""
    texts = path.read_text(encoding="utf-8").split(SEPARATOR)
    cleaned = ("\n".join(filter(None, map(str.strip, text.split("\n")))) for text in texts)
    return [text for text in cleaned if len(text) >= 80]


def draw(text: str, purpose: str) -> random.Random:
    """Random numbers that depend on a document and a purpose only."""
    return random.Random(hashlib.sha256(f"{purpose}\0{text}".encode()).digest())


def subjects(text: str) -> tuple[str | None, str | None]:
    """A name and a noun that the story keeps coming back to."""
    words = re.findall(r"(?<=[a-z,] )[A-Z][a-z]{2,}\b", text)
    names = [w for w, n in Counter(words).most_common(5) if n >= 2 and w.lower() not in COMMON]
    nouns = re.findall(r"\b(?:a|an|the) (?:[a-z]+ )?([a-z]{3,})\b(?=[ .,!?])", text)
    things = [w for w, n in Counter(nouns).most_common(8) if n >= 2 and w not in COMMON]
    return (names[0] if names else None), (things[0] if things else None)


def request(text: str, rng: random.Random) -> str:
    """A plausible wish that this story fulfils."""
    name, thing = subjects(text)
    article = "an" if thing and thing[0] in "aeiou" else "a"
    about = [
        *([f"{name} and {article} {thing}"] * 3 if name and thing else []),
        *([f"{article} {thing}"] * 2 if thing else []),
        *([name] if name else []),
    ]
    if not about or rng.random() < 0.1:
        return rng.choice(["Tell me a story.", "Please tell me a story.", "Write a short story."])
    wish = rng.choice(
        ["Tell me a story about {}.", "Write a story about {}.", "Please tell me a story about {}.",
         "Can you tell me a story about {}?"]
    )  # fmt: skip
    return wish.format(rng.choice(about))


def dialogue(text: str, rng: random.Random) -> str:
    """The story as one or two turns of a conversation, in Gemma's format."""
    parts = [text]
    cuts = [m.end() for m in re.finditer(r'[.!?]"? |\n', text)]
    middle = [c for c in cuts if 0.3 < c / len(text) < 0.7]
    if middle and rng.random() < 0.35:
        cut = rng.choice(middle)
        parts = [text[:cut].strip(), text[cut:].strip()]
    wishes = [request(text, rng), rng.choice(CONTINUE)]
    turns = (
        f"{START}user\n{wish}{END}\n{START}model\n{part}{END}"
        for wish, part in zip(wishes, parts, strict=False)
    )
    return "\n".join(turns)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hold-out", type=float, default=0.05, help="share of documents (0.05)")
    parser.add_argument("--dialogues", type=float, default=0.15, help="share repeated as dialogue")
    args = parser.parse_args()

    seen: set[str] = set()
    train, heldout, talks = [], [], []
    for path in args.files:
        for text in documents(path):
            if text in seen:
                continue
            seen.add(text)
            if draw(text, "hold-out").random() < args.hold_out:
                heldout.append(text)
                continue
            train.append(text)
            rng = draw(text, "dialogue")
            if len(text) < 2500 and rng.random() < args.dialogues:
                talks.append(dialogue(text, rng))

    args.out.mkdir(parents=True, exist_ok=True)
    mixed = sorted(train + talks, key=lambda text: draw(text, "order").random())
    for name, texts in (("train.txt", mixed), ("heldout.txt", heldout)):
        partial = args.out / (name + ".partial")
        partial.write_text(f"\n{SEPARATOR}\n".join(texts) + "\n", encoding="utf-8")
        partial.replace(args.out / name)
        size = (args.out / name).stat().st_size
        print(f"{name}: {len(texts)} documents, {size} bytes")
    print(f"of the training documents {len(talks)} are dialogues")


if __name__ == "__main__":
    main()
