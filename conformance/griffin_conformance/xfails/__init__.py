"""Known failures of other implementations, one list for each, with a reason for every entry."""

import re
from pathlib import Path

__all__ = ["known_failures", "read_xfails"]

HERE = Path(__file__).parent


def read_xfails(path: Path) -> dict[str, str]:
    """Checks that are known to fail, and why.

    A line is ``check-name  # reason``; lines that begin with ``#`` are comments.

    Raises
    ------
    ValueError
        If there is no such file, or a line is neither, gives no reason, or names a check for the
        second time.
    """
    found: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no list of known failures: it is not text in UTF-8") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"([a-z0-9-]+)\s+#\s*(\S.*)", line.strip())
        if match is None:
            raise ValueError(
                f"{path}, line {number}: expected 'check-name  # reason', got {line!r}"
            )
        if match[1] in found:
            raise ValueError(f"{path}, line {number}: {match[1]} is there twice; keep one")
        found[match[1]] = match[2].strip()
    return found


def known_failures(backend: str) -> dict[str, str]:
    """What the list of a backend says; nothing if it has none."""
    path = HERE / f"{backend}.txt"
    return read_xfails(path) if re.fullmatch(r"[\w.-]+", backend) and path.is_file() else {}
