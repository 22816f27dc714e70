"""Gemma's dialogue format, and a conversation that keeps its state.

RecurrentGemma report, section 3.2, tables 3 and 4::

    <bos><start_of_turn>user
    Knock knock.<end_of_turn>
    <start_of_turn>model
    Who's there?<end_of_turn>

There is no system role: a system text goes in front of the first user turn.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence

from griffin_np.base import Model
from griffin_np.errors import StateError, TokenizerError
from griffin_np.generate import Stream, stream
from griffin_np.state import State
from griffin_np.tokenizer import END_OF_TURN, START_OF_TURN, Tokenizer

__all__ = ["CHAT_TEMPLATE", "Conversation", "encode_dialogue", "render_dialogue"]

Message = Mapping[str, str]

CHAT_TEMPLATE = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.system = message['content'] | trim + '\n\n' %}"
    "{% else %}"
    "{{ '<start_of_turn>' + ('user' if message['role'] == 'user' else 'model') + '\n' }}"
    "{{ (ns.system if message['role'] == 'user' else '') + message['content'] | trim }}"
    "{{ '<end_of_turn>\n' }}"
    "{% if message['role'] == 'user' %}{% set ns.system = '' %}{% endif %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
"""The format as transformers' tokenizers store it."""


def turns(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """``(role, text)`` of each turn, role "user" or "model", a system text folded in.

    Raises
    ------
    TokenizerError
        If a message has no role or content, a role is unknown, or user and model do not alternate
        beginning with the user.
    """
    system = ""
    result: list[tuple[str, str]] = []
    for i, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if not isinstance(content, str):
            raise TokenizerError(f"message {i} has no text: 'content' is {content!r}")
        role = "model" if role == "assistant" else role
        if role == "system" and i == 0:
            system = content.strip() + "\n\n"
            continue
        expected = "model" if len(result) % 2 else "user"
        if role != expected:
            raise TokenizerError(
                f"message {i} has role {message.get('role')!r}, expected {expected!r}: after an "
                f"optional system message, user and model take turns"
            )
        result.append((role, (system if role == "user" else "") + content.strip()))
        system = ""
    if not result:
        raise TokenizerError("a dialogue needs at least one user message")
    return result


def render_dialogue(messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
    """The dialogue as one text, without the beginning-of-sequence token."""
    text = "".join(
        f"{START_OF_TURN}{role}\n{content}{END_OF_TURN}\n" for role, content in turns(messages)
    )
    return text + (f"{START_OF_TURN}model\n" if add_generation_prompt else "")


def encode_dialogue(
    tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = True
) -> list[int]:
    """Token ids of a dialogue, one beginning-of-sequence token in front.

    Turn markers inside a message stay text: nobody can end a turn by writing so.
    """
    ids = [tokenizer.bos_id]
    for role, content in turns(messages):
        ids += turn_tokens(tokenizer, role, content)
    return ids + (turn_header(tokenizer) if add_generation_prompt else [])


def turn_markers(tokenizer: Tokenizer) -> tuple[int, int]:
    start, end = tokenizer.piece_to_id(START_OF_TURN), tokenizer.piece_to_id(END_OF_TURN)
    if start is None or end is None:
        raise TokenizerError(
            f"this vocabulary has no {START_OF_TURN} and {END_OF_TURN}: the model was not made for "
            f"dialogue, use it with plain prompts"
        )
    return start, end


def turn_tokens(tokenizer: Tokenizer, role: str, content: str) -> list[int]:
    start, end = turn_markers(tokenizer)
    return [
        start,
        *literal(tokenizer, f"{role}\n{content}"),
        end,
        *tokenizer.encode("\n", bos=False),
    ]


def turn_header(tokenizer: Tokenizer) -> list[int]:
    return [turn_markers(tokenizer)[0], *tokenizer.encode("model\n", bos=False)]


def literal(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text in which turn markers are not recognised."""
    ids: list[int] = []
    for part in re.split(f"({START_OF_TURN}|{END_OF_TURN})", text):
        broken = [part[:1], part[1:]] if part in (START_OF_TURN, END_OF_TURN) else [part]
        for piece in filter(None, broken):
            ids += tokenizer.encode(piece, bos=False)
    return ids


class Conversation:
    """A dialogue that keeps the model's state, so that a turn costs its own tokens only.

    Parameters
    ----------
    model : Model
        With a tokenizer that has turn markers.
    system : str
        Goes in front of the first user turn.

    Attributes
    ----------
    messages : list of dict
        ``{"role": "user" | "model", "content": text}``, as they were said.
    state : State or None
        After the last finished turn; its end marker is fed with the next one.

    Raises
    ------
    TokenizerError
        If the model has no tokenizer or its vocabulary no turn markers.
    """

    def __init__(self, model: Model, system: str = ""):
        turn_markers(model.need_tokenizer())
        self.model = model
        self.system = system
        self.messages: list[dict[str, str]] = []
        self.state: State | None = None

    def prompt(self, text: str) -> list[int]:
        """Token ids that a user turn adds to the state."""
        tokenizer = self.model.need_tokenizer()
        if self.state is None:
            system = [{"role": "system", "content": self.system}] if self.system else []
            return encode_dialogue(tokenizer, [*system, {"role": "user", "content": text}])
        end = [turn_markers(tokenizer)[1], *tokenizer.encode("\n", bos=False)]
        return [*end, *turn_tokens(tokenizer, "user", text.strip()), *turn_header(tokenizer)]

    def say(self, text: str, **options) -> Stream:
        """Begin the model's answer to a user turn; takes the options of ``generate``.

        Iterate over the result, then call :meth:`finish` with it, also when it was left early: only
        then does the turn belong to the conversation.
        """
        return stream(self.model, self.prompt(text), state=self.state, **options)

    def finish(self, text: str, answer: Stream) -> None:
        """Take a turn and its answer, as far as it got, into the conversation."""
        self.state = answer.state
        self.messages += [
            {"role": "user", "content": text},
            {"role": "model", "content": answer.result.text},
        ]

    def save(self, path: str | os.PathLike) -> None:
        """Write state and messages to one state file.

        Raises
        ------
        StateError
            If nothing has been said yet.
        """
        if self.state is None:
            raise StateError("nothing to save: the conversation is empty")
        said = json.dumps({"system": self.system, "messages": self.messages})
        self.state.save(path, {"conversation": said})

    def load(self, path: str | os.PathLike) -> None:
        """Go on with a conversation that :meth:`save` wrote; on an error nothing changes.

        Raises
        ------
        StateError
            If the file is damaged, of another model, or holds no conversation.
        """
        state = State.load(path)
        state.check_model(self.model.config, self.model.fingerprint, str(path))
        content = State.read_metadata(path).get("conversation")
        if content is None or state.batch != 1:
            raise StateError(
                f"{path} is a state without a conversation: use it with generate --state-in"
            )
        try:
            saved = json.loads(content)
            system, messages = saved["system"], saved["messages"]
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"{path} holds a damaged conversation: {error!r}") from None
        self.state, self.system, self.messages = state, system, messages
