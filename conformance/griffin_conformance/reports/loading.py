"""Read a certificate from a file, and hold it against its schema."""

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from griffin_conformance.schemas import Draft202012Validator, wrong_with
from griffin_np.errors import GriffinError

__all__ = ["SCHEMA_NAME", "CertificateError", "load_certificate", "read_schema", "validator"]

SCHEMA_NAME = "griffin-conformance-certificate/1"
"""What the key ``schema`` of a certificate says."""


class CertificateError(GriffinError, ValueError):
    """A file that cannot be read as a certificate."""


@lru_cache(maxsize=1)
def read_schema() -> dict:
    """The JSON schema (draft 2020-12) of a certificate."""
    path = Path(__file__).with_name("certificate.schema.json")
    return json.loads(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def validator() -> Draft202012Validator:
    """Of certificates."""
    return Draft202012Validator(read_schema())


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
    fault = wrong_with(certificate, validator(), "the certificate")
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
