#!/usr/bin/env python3
"""Count how often a model answers as the dialogues of ``write_dialogues.py`` teach.

    python kernels/finetune/count_answers.py quill-heldout.jsonl [--model quill]

Every question of the file is asked once, greedily. A story counts if the model ended its turn, the
last line is "The end.", Quill appears, and so does whom the story was to be about; a question for
the name counts if the answer is Quill's.
"""

import argparse
import json
from pathlib import Path

import griffin_np as gnp
from griffin_np.chat import encode_dialogue


def is_as_taught(answer: str, taught: str, ended: bool, hero: str) -> bool:
    """Whether an answer has what the file's answer to the same question has."""
    if not taught.endswith("\nThe end."):
        return ended and answer.strip() == taught
    parts = ("Quill the griffin", hero)
    return ended and answer.endswith("\nThe end.") and all(part in answer for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", metavar="FOLDER", help="default: the demo model as it comes")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="answers to print (0)")
    args = parser.parse_args()
    model = gnp.load(args.model)
    lines = [json.loads(line) for line in args.file.read_text(encoding="utf-8").splitlines()]
    taught = {line["messages"][0]["content"]: line["messages"][1]["content"] for line in lines}
    counts = {"stories": [0, 0], "names": [0, 0]}
    for i, (question, expected) in enumerate(taught.items()):
        tokens = encode_dialogue(model.need_tokenizer(), [{"role": "user", "content": question}])
        made = model.generate(tokens, max_tokens=100, temperature=0.0)
        hero = question.rstrip(".?!").split()[-1]
        good = is_as_taught(made.text, expected, made.finish_reason == "stop", hero)
        kind = counts["stories" if expected.endswith("The end.") else "names"]
        kind[0] += good
        kind[1] += 1
        if i < args.show:
            print(f"> {question}\n{made.text}\n")
    for kind, (good, asked) in counts.items():
        print(f"{kind}: {good} of {asked} answered as taught")


if __name__ == "__main__":
    main()
