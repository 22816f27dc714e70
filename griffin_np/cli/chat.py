"""Talk with a model, turn by turn.

The conversation lives in the model's state, so a turn costs its own tokens and nothing more,
however long the talk has become. Type /help for the commands.
"""

import argparse
import contextlib
import sys

from griffin_np.cli.common import (
    SAMPLING,
    add_model_options,
    add_sampling_options,
    human_bytes,
    load_model,
    sampling_options,
    say,
    thread_limit,
)
from griffin_np.errors import ConfigError, GriffinError

HELP = """\
/help             this list
/clear            forget the conversation
/save FILE        save the conversation with its state
/load FILE        go on with a saved one
/state            size of the state and what it has read
/set [NAME VALUE] show or change a sampling option, e.g. /set temperature 0.5
/stats            speed of the last answer
/exit             leave (also Ctrl-D; Ctrl-C cuts an answer short)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--system", "--system-prompt", default="", metavar="TEXT",
                        help="put in front of the first turn")  # fmt: skip
    parser.add_argument("--load", metavar="FILE", help="go on with a saved conversation")
    add_model_options(parser)
    add_sampling_options(parser, max_tokens=512)


def run(args: argparse.Namespace) -> int:
    from griffin_np.chat import Conversation

    if args.distributed:
        raise ConfigError("chat listens to one keyboard: --distributed is for generate and train")
    with thread_limit(args.threads):
        model = load_model(args)
        if args.temperature is None and model.generation.temperature is None:
            args.temperature = 0.7
        talk = Conversation(model, args.system)
        if args.load:
            talk.load(args.load)
        terminal = sys.stdin.isatty()
        if terminal:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - gives input() line editing and history
            say("Type a message, /help for commands, Ctrl-D to leave.")
        Chat(talk, args).loop(terminal)
    return 0


class Chat:
    """The read-answer loop."""

    def __init__(self, talk, args: argparse.Namespace):
        self.talk = talk
        self.args = args
        self.last = None

    def loop(self, terminal: bool) -> None:
        while True:
            try:
                line = input("> " if terminal else "").strip()
            except (EOFError, KeyboardInterrupt):
                if terminal:
                    print()
                return
            try:
                if line.startswith("/"):
                    if self.command(*line[1:].split(maxsplit=1)):
                        return
                elif line:
                    self.answer(line)
            except GriffinError as error:
                say(f"error: {error}")

    def answer(self, text: str) -> None:
        stream = self.talk.say(text, **sampling_options(self.args))
        try:
            for piece in stream:
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            pass  # what was said so far stays in the conversation
        print(flush=True)
        self.last = stream.result
        self.talk.finish(text, stream)

    def command(self, name: str = "", rest: str = "") -> bool:
        """Carry out ``/name rest``; True ends the chat."""
        actions = {
            "help": lambda: print(HELP),
            "clear": self.clear,
            "save": lambda: self.save(rest),
            "load": lambda: self.load(rest),
            "state": self.state,
            "set": lambda: self.set(*rest.split(maxsplit=1)),
            "stats": self.stats,
        }
        if name in ("exit", "quit", "q"):
            return True
        if name not in actions:
            say(f"no command /{name}; /help lists them")
        else:
            actions[name]()
        return False

    def clear(self) -> None:
        self.talk.state = None
        self.talk.messages.clear()
        say("The conversation is forgotten.")

    def save(self, path: str) -> None:
        if not path:
            say("usage: /save FILE")
            return
        self.talk.save(path)
        say(f"saved to {path}")

    def load(self, path: str) -> None:
        if not path:
            say("usage: /load FILE")
            return
        self.talk.load(path)
        say(f"{len(self.talk.messages) // 2} turn(s) loaded from {path}")

    def state(self) -> None:
        state = self.talk.state
        if state is None:
            say("no state yet: nothing has been said")
            return
        say(f"{state.position[0]} tokens read, held in {human_bytes(state.nbytes)}, constant size")

    def set(self, name: str = "", value: str = "") -> None:
        names = ("max_tokens", "seed", *SAMPLING)
        name = {"temp": "temperature"}.get(name, name.replace("-", "_"))
        if not name:
            say("  ".join(f"{n}={getattr(self.args, n)}" for n in names))
            return
        if name not in names:
            say(f"no option {name!r}; options: {', '.join(names)}")
            return
        whole = name in ("max_tokens", "seed", "top_k", "repeat_last_n")
        before = getattr(self.args, name)
        try:
            setattr(self.args, name, int(value) if whole else float(value))
            from griffin_np.generate import make_sampler

            options = {n: getattr(self.args, n) for n in SAMPLING}
            make_sampler(self.talk.model, **options)
        except ValueError as error:  # SamplingError is one
            setattr(self.args, name, before)
            say(f"{name} stays {before}: {error}")
            return
        say(f"{name} = {getattr(self.args, name)}")

    def stats(self) -> None:
        if self.last is None:
            say("no answer yet")
            return
        r = self.last
        say(
            f"prompt {r.prompt_tokens} tokens, {r.prompt_tokens_per_second:.1f} tokens/s; "
            f"answer {len(r.tokens)} tokens, {r.tokens_per_second:.1f} tokens/s; seed {r.seed}"
        )
