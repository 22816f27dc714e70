"""JSON values held against JSON schemas, with one line about what is wrong."""

from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

__all__ = ["Draft202012Validator", "shortened", "wrong_with"]


def shortened(text: str, length: int = 120) -> str:
    """Text that fits into a line of an error."""
    text = text.replace("\n", "\\n")
    return text if len(text) <= length else f"{text[:length]}... ({len(text)} characters)"


def wrong_with(value: Any, validator: Draft202012Validator, name: str = "it") -> str:
    """What tells most about how a value breaks a schema; nothing where it does not.

    Parameters
    ----------
    value : object
        As ``json.loads`` gives it.
    validator : Draft202012Validator
        Of the schema.
    name : str
        What the value is called.
    """
    error = best_match(validator.iter_errors(value))
    if error is None:
        return ""
    return f"{name}{error.json_path.removeprefix('$')}: {shortened(error.message)}"
