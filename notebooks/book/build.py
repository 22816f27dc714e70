"""Make the book: the notebooks, run, with the specification and the API, as pages to read offline.

python notebooks/book/build.py OUT                       runs the notebooks, two at a time
python notebooks/book/build.py OUT --executed FOLDER     takes copies that have been run

Needs ``pip install ".[book]"``. Nothing is fetched, neither now nor by who reads. Warnings are
errors: a link that leads nowhere, a formula or docstring that cannot be read. OUT is written
elsewhere and renamed when it is whole; a book that is there is replaced, and nothing else is.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
NOTEBOOKS = HERE.parent / "griffin_notebooks"

MARK = ".griffin-book"
"""A file that tells a book of ours from a folder of somebody's."""

AT_ONCE = 2
SECONDS_A_CELL = 600


class BookError(Exception):
    """What the user can do something about."""


def check_out(out: Path) -> None:
    """Refuse to write over what is not a book.

    Raises
    ------
    BookError
        If there is something else.
    """
    if not os.path.lexists(out):
        return
    if out.is_dir() and not out.is_symlink() and ((out / MARK).is_file() or not any(out.iterdir())):
        return
    raise BookError(f"{out} exists and is no book made by this command: name another folder")


def executed(paths: Iterable[Path], target: Path) -> None:
    """Run notebooks, and write what they are then into a folder.

    Raises
    ------
    BookError
        If a cell fails.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(lambda path: _execute(path, target / path.name), paths):
            pass


def _execute(path: Path, target: Path) -> None:
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    notebook, began = nbformat.read(path, as_version=4), time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        client = NotebookClient(
            notebook, timeout=SECONDS_A_CELL, kernel_name="python3",
            resources={"metadata": {"path": place}},
        )  # fmt: skip
        try:
            client.execute(stderr=subprocess.DEVNULL)  # the kernel's own, not the cells'
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            told = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
            raise BookError(f"{path.name} does not run:\n{told}") from None
    nbformat.write(notebook, target)
    print(f"{path.stem} ran in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def taken(paths: Iterable[Path], source: Path, target: Path) -> None:
    """Copy notebooks that have been run, if they are what ours are.

    Raises
    ------
    BookError
        If one is missing, has other cells, or has not been run.
    """
    import nbformat

    for path in paths:
        copy = source / path.name
        if not copy.is_file():
            raise BookError(f"{copy} does not exist: run all notebooks, or leave --executed out")
        theirs, ours = (nbformat.read(p, as_version=4).cells for p in (copy, path))
        if [cell.source for cell in theirs] != [cell.source for cell in ours]:
            raise BookError(f"{copy} has other cells than {path}: run a copy of that one")
        if any(c.cell_type == "code" and c.source and c.execution_count is None for c in theirs):
            raise BookError(f"{copy} has cells that have not been run")
        shutil.copy(copy, target / path.name)


def sphinx(source: Path, target: Path) -> None:
    """Make pages of the sources.

    Raises
    ------
    BookError
        If anything is wrong with them.
    """
    command = [
        sys.executable, "-m", "sphinx", "-b", "html", "-q", "-W", "--keep-going",
        "-c", str(HERE), "-d", str(source.parent / "doctrees"), str(source), str(target),
    ]  # fmt: skip
    # No traces, in the repository, of its modules having been read.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    if subprocess.run(command, env=environment, check=False).returncode:
        raise BookError("Sphinx is not content: see above")
    for name in ("objects.inv", ".buildinfo"):
        (target / name).unlink(missing_ok=True)
    shutil.rmtree(target / "_sources", ignore_errors=True)


ELSEWHERE = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\ssrc=[\"'](?:https?:)?//[^\"']*"
    r"|<link\b(?![^>]*rel=[\"']?canonical)[^>]*\shref=[\"'](?:https?:)?//[^\"']*"
    r"|(?:@import|url\()\s*[\"']?(?:https?:)?//[^\"')]*"
)
"""What a browser would fetch from somewhere else."""


def check_offline(book: Path) -> None:
    """See that no page asks the network for anything.

    Raises
    ------
    BookError
        With the first that does.
    """
    for path in sorted([*book.rglob("*.html"), *book.rglob("*.css")]):
        found = ELSEWHERE.search(path.read_text(encoding="utf-8"))
        if found:
            raise BookError(f"{path.relative_to(book)} is not for reading offline: {found[0]}")


def build(out: Path, copies: Path | None = None) -> None:
    """Make the book.

    Parameters
    ----------
    out : Path
        A folder that does not exist, is empty, or is a book.
    copies : Path, optional
        A folder with executed copies of the notebooks; otherwise they are run.

    Raises
    ------
    BookError
        With what is wrong.
    """
    check_out(out)
    sys.path[:0] = [str(HERE)]
    try:
        import sources
    except ImportError as error:
        raise BookError(f'{error.name} is missing: pip install "griffin-np[book]"') from None

    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    if copies is not None and not copies.is_dir():
        raise BookError(f"{copies} is no folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as work:
        source, target, ran = (Path(work) / name for name in ("source", "book", "ran"))
        ran.mkdir()
        if copies is None:
            executed(paths, ran)
        else:
            taken(paths, copies, ran)
        sources.lay_out(ran, source)
        sphinx(source, target)
        check_offline(target)
        (target / MARK).touch()
        check_out(out)  # minutes have passed
        if out.exists():
            out.rename(Path(work) / "old")
        target.rename(out)


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the book")
    parser.add_argument("--executed", type=Path, metavar="FOLDER", help="notebooks that have run")
    args = parser.parse_args()
    began = time.monotonic()
    try:
        build(args.out.absolute(), args.executed)
    except BookError as error:
        print(f"build.py: error: {error}", file=sys.stderr)
        return 1
    print(f"{args.out / 'index.html'} is made, in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
