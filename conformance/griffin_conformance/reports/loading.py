"""Read a certificate from a file, and hold it against its schema."""

import json
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from griffin_np.errors import GriffinError

__all__ = ["SCHEMA_NAME", "CertificateError", "load_certificate", "read_schema", "wrong_with"]

SCHEMA_NAME = "griffin-conformance-certificate/1"
"""What the key ``schema`` of a certificate says."""

KINDS: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "integer": int,
    "number": (int, float),
}
SAYS_NOTHING = {"$schema", "$id", "$defs", "title", "description"}
KNOWN = SAYS_NOTHING | set(
    "$ref additionalProperties anyOf const enum items maxItems minimum minItems minLength pattern "
    "prefixItems properties propertyNames required type uniqueItems".split()
)


class CertificateError(GriffinError, ValueError):
    """A file that cannot be read as a certificate."""


@lru_cache(maxsize=1)
def read_schema() -> dict:
    """The JSON schema (draft 2020-12) of a certificate."""
    path = Path(__file__).with_name("certificate.schema.json")
    return json.loads(path.read_text(encoding="utf-8"))


def load_certificate(path: str | os.PathLike) -> dict:
    """A certificate from a file that ``conformance run --json`` wrote.

    Raises
    ------
    CertificateError
        If there is no such file, or it is cut off, no certificate, of another schema version, or
        breaks the schema; the message names the file and the place.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise CertificateError(f"there is no file {path}") from None
    except OSError as error:
        raise CertificateError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise CertificateError(f"{path} is no certificate: it is not text in UTF-8") from None
    certificate = _parse(text, path)
    found = certificate.get("schema") if isinstance(certificate, dict) else None
    if not isinstance(found, str) or not found.startswith(SCHEMA_NAME.partition("/")[0]):
        raise CertificateError(
            f"{path} is JSON but no certificate: it has no key schema with {SCHEMA_NAME!r}; "
            f"make one with griffin-np conformance run --json FILE"
        )
    if found != SCHEMA_NAME:
        raise CertificateError(
            f"{path} is a certificate of schema {found!r}, and this version reads {SCHEMA_NAME!r}: "
            f"make it again, or read it with the griffin-np that wrote it"
        )
    fault = wrong_with(certificate)
    if fault:
        raise CertificateError(f"{path} breaks the schema of certificates: {fault}")
    return certificate


def _parse(text: str, path: str | os.PathLike) -> Any:
    """JSON, and nothing else."""
    if not text.strip():
        raise CertificateError(f"{path} is empty: make the certificate again")

    def refuse(word: str):
        raise CertificateError(f"{path} is no certificate: JSON has no {word}")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        whole = text.strip()
        began = whole.startswith("{")
        if began and (error.pos >= len(text.rstrip()) or not whole.endswith("}")):
            raise CertificateError(
                f"{path} is cut off after {len(text)} characters: make the certificate again"
            ) from None
        raise CertificateError(
            f"{path} is no certificate: not JSON at line {error.lineno}, column {error.colno} "
            f"({error.msg})"
        ) from None
    except RecursionError:
        raise CertificateError(f"{path} is no certificate: it is nested too deeply") from None


def wrong_with(
    value: Any, schema: dict | None = None, where: str = "", root: dict | None = None
) -> str:
    """The first thing in which a value breaks a schema; empty where there is none.

    Parameters
    ----------
    value : object
        As ``json.loads`` gives it.
    schema : dict, optional
        With the keywords that the schema of certificates uses; that one by default.
    where : str
        Name of the value in the message.
    root : dict, optional
        The schema that has the definitions that ``$ref`` names; ``schema`` itself by default.

    Raises
    ------
    NotImplementedError
        If the schema uses a keyword that this function does not know.
    """
    schema = read_schema() if schema is None else schema
    root = schema if root is None else root
    unknown = set(schema) - KNOWN
    if unknown:
        raise NotImplementedError(f"keywords of JSON schema: {', '.join(sorted(unknown))}")
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        fault = wrong_with(value, root["$defs"][name], where, root)
        if fault:
            return fault
    return (
        _wrong_kind(value, schema, where)
        or _wrong_choice(value, schema, where, root)
        or _wrong_size(value, schema, where)
        or (_wrong_object(value, schema, where, root) if isinstance(value, dict) else "")
        or (_wrong_array(value, schema, where, root) if isinstance(value, list) else "")
    )


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, KINDS[kind])


def _told(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _wrong_kind(value: Any, schema: dict, where: str) -> str:
    if "type" not in schema or _is(value, schema["type"]):
        return ""
    return f"{where or 'it'} must be of type {schema['type']}, got {_told(value)}"


def _wrong_choice(value: Any, schema: dict, where: str, root: dict) -> str:
    choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
    # 1 and true are one in Python, but not in JSON.
    if choices is not None and not any(c == value and type(c) is type(value) for c in choices):
        return f"{where} must be {' or '.join(map(_told, choices))}, got {_told(value)}"
    if "anyOf" in schema:
        faults = [wrong_with(value, choice, where, root) for choice in schema["anyOf"]]
        if all(faults):
            return faults[-1]  # alternatives that say most stand last in the schema
    return ""


def _wrong_size(value: Any, schema: dict, where: str) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and value < schema.get("minimum", value):
        return f"{where} must be at least {schema['minimum']}, got {value}"
    if isinstance(value, str):
        if len(value) < schema.get("minLength", 0):
            return f"{where} must not be empty"
        if not re.search(schema.get("pattern", ""), value):
            return f"{where} must match {schema['pattern']}, got {_told(value)}"
    return ""


def _wrong_object(value: dict, schema: dict, where: str, root: dict) -> str:
    known = schema.get("properties", {})
    missing = [key for key in schema.get("required", ()) if key not in value]
    if missing:
        return f"{where or 'it'} lacks {', '.join(missing)}"
    others = schema.get("additionalProperties", True)
    for key, entry in value.items():
        place = f"{where}.{key}" if where else key
        if "propertyNames" in schema:
            fault = wrong_with(key, schema["propertyNames"], f"the name {place}", root)
            if fault:
                return fault
        if key in known:
            rule = known[key]
        elif others is False:
            return f"{where or 'it'} has an unknown key {key!r}"
        else:
            rule = {} if others is True else others
        fault = wrong_with(entry, rule, place, root)
        if fault:
            return fault
    return ""


def _wrong_array(value: list, schema: dict, where: str, root: dict) -> str:
    least, most = schema.get("minItems", 0), schema.get("maxItems", len(value))
    if not least <= len(value) <= most:
        size = f"{least}" if least == most else f"{least} or more"
        return f"{where} must have {size} entries, got {len(value)}"
    firsts = schema.get("prefixItems", [])
    for i, entry in enumerate(value):
        rule = firsts[i] if i < len(firsts) else schema.get("items", {})
        fault = wrong_with(entry, rule, f"{where}[{i}]", root)
        if fault:
            return fault
    told = [_told(entry) for entry in value] if schema.get("uniqueItems") else []
    twice = next((word for word in told if told.count(word) > 1), None)
    return f"{where} has {twice} twice" if twice else ""
