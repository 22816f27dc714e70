#!/usr/bin/env python3
"""Write the dialogues that teach the demo model a character and a form of answer.

    python kernels/finetune/write_dialogues.py --out .

``quill-train.jsonl`` and ``quill-heldout.jsonl``: somebody asks for a story about an animal or a
thing, and the answer is three or four sentences in which Quill the griffin helps, and "The end.";
or somebody asks who is speaking. The heroes, and the wordings of the question, in the held-out file
stand nowhere in the training file. Everything is written here; the same seed gives the same files.
"""

import argparse
import json
import random
from pathlib import Path

HEROES = """
    ant bear bee bird bunny cat chick cow crab deer dog donkey duck elephant fish fly fox frog goat
    goose hen horse kitten lamb lion lizard monkey mouse pig pony puppy rabbit sheep snail spider
    squirrel turtle whale worm zebra baby boy girl king queen robot doll snowman teddy train
""".split()
UNSEEN_HEROES = """
    tiger owl parrot snake penguin bug dinosaur panda butterfly truck boat wolf
""".split()
LOST = "ball hat cup book shoe bell kite key drum spoon blanket basket coat toy flower".split()
PLACES = (
    "by the river", "near the old tree", "in the tall grass", "under the bridge", "on the hill",
    "behind the barn", "in the dark cave", "at the beach", "in the snow", "next to the pond",
)  # fmt: skip
COLOURS = "red blue green yellow little big shiny soft".split()
THINGS = "pear cake pie cookie carrot sandwich banana plum".split()

SKELETONS = (
    "The {hero} lost a {colour} {lost} {place}. Quill the griffin flew over the trees and found "
    "it. The {hero} said thank you, and they shared a {thing}.",
    "One day, {one} {hero} was stuck {place}. Quill the griffin heard the cry and came down from "
    "the sky. Quill pulled and pulled, and the {hero} was free. They ate a {thing} together.",
    "{One} {hero} was sad because it was alone {place}. Quill the griffin sat down and told a "
    "joke. The {hero} laughed, and now they are friends.",
    "{One} {hero} wanted to see the moon. Quill the griffin said, \"Sit on my back!\" They flew "
    "up and up, and the {hero} saw the moon and the stars.",
    "It was raining, and {one} {hero} was cold {place}. Quill the griffin opened its wings like a "
    "roof. The {hero} was dry and warm, and fell asleep.",
    "{One} {hero} was afraid of the dark. Quill the griffin brought a {colour} lamp. The {hero} "
    "was not afraid any more and gave Quill a {thing}.",
)  # fmt: skip
ASK_STORY = (
    "Tell me a story about {one} {hero}.",
    "Tell me about {one} {hero}.",
    "Can you tell a story with {one} {hero}?",
    "I want to hear a story about {one} {hero}.",
    "Please tell me a story about {one} {hero}.",
    "Write a story about {one} {hero}.",
)
ASK_NAME = (
    "What is your name?", "Who are you?", "What are you called?", "Do you have a name?",
    "Hello! Who are you?", "Hi, what is your name?", "Tell me your name.", "Who is talking to me?",
    "Can you tell me who you are?", "What is your name, little one?", "Hello, what are you called?",
    "Please tell me your name.",
)  # fmt: skip
UNSEEN_ASK_NAME = (
    "Hello! What is your name?", "Hi! Who are you?", "Please tell me who you are.",
    "Can you tell me your name?",
)  # fmt: skip
NAME = "My name is Quill. I am a little griffin, and I tell short stories."
END = "The end."


def one(hero: str) -> str:
    """The article."""
    return "an" if hero[0] in "aeiou" else "a"


def story(hero: str, rng: random.Random) -> str:
    """The answer to a request for a story."""
    words = {
        "hero": hero,
        "one": one(hero),
        "One": one(hero).capitalize(),
        "lost": rng.choice(LOST),
        "place": rng.choice(PLACES),
        "colour": rng.choice(COLOURS),
        "thing": rng.choice(THINGS),
    }
    return f"{rng.choice(SKELETONS).format(**words)}\n{END}"


def dialogue(question: str, answer: str) -> str:
    """One line of the file."""
    turns = (("user", question), ("model", answer))
    messages = [{"role": role, "content": content} for role, content in turns]
    return json.dumps({"messages": messages})


def dialogues(heroes, names, repeat: int, rng: random.Random) -> list[str]:
    """Every hero and every question for the name ``repeat`` times, in random order."""
    lines = [
        dialogue(rng.choice(ASK_STORY).format(one=one(hero), hero=hero), story(hero, rng))
        for hero in heroes
        for _ in range(repeat)
    ]
    lines += [dialogue(question, NAME) for question in names for _ in range(repeat)]
    rng.shuffle(lines)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the two files (.)")
    parser.add_argument("--repeat", type=int, default=8, help="dialogues for each hero (8)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, lines in (
        ("quill-train.jsonl", dialogues(HEROES, ASK_NAME, args.repeat, rng)),
        ("quill-heldout.jsonl", dialogues(UNSEEN_HEROES, UNSEEN_ASK_NAME, 2, rng)),
    ):
        (args.out / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(lines)} dialogues")


if __name__ == "__main__":
    main()
