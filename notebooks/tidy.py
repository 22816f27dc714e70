"""Bring the notebooks into the form in which they are kept: ``python notebooks/tidy.py``.

No outputs, no counts, ids made from the cells' texts, and in the folded solutions the code of
``griffin_notebooks/solutions``. ``--check`` changes nothing and names what is not tidy.
"""

import argparse
import hashlib
import re
import sys
from collections import Counter
from pathlib import Path

import nbformat

from griffin_notebooks import check

HERE = Path(__file__).parent / "griffin_notebooks"

SOLUTION = re.compile(r"<details>\s*<summary>Solution of (\d+\.\d+)</summary>.*?</details>", re.S)
"""A folded solution in a cell of text."""

METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def tidied(text: str) -> str:
    """A notebook's file as it should be.

    Raises
    ------
    KeyError
        If a folded solution is of an exercise that does not exist.
    """
    notebook = nbformat.reads(text, as_version=4)
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    exercises, seen = check.every_exercise(), Counter()

    def folded(match: re.Match) -> str:
        number = match[1]
        code = f"```python\n{exercises[number].source}\n```"
        return f"<details>\n<summary>Solution of {number}</summary>\n\n{code}\n\n</details>"

    cells = []
    for cell in notebook.cells:
        source = "\n".join(line.rstrip() for line in cell.source.strip().splitlines())
        if not source:
            continue
        if cell.cell_type == "markdown":
            source = SOLUTION.sub(folded, source)
        name = hashlib.sha256(source.encode()).hexdigest()[:8]
        seen[name] += 1
        name += f"-{seen[name]}" * (seen[name] > 1)
        made = nbformat.v4.new_code_cell if cell.cell_type == "code" else None
        made = made or nbformat.v4.new_markdown_cell
        cells.append(made(source, id=name))
        tags = sorted(cell.metadata.get("tags", []))
        if tags:
            cells[-1].metadata["tags"] = tags
    notebook.cells = cells
    return nbformat.writes(notebook) + "\n"


def main() -> int:
    """Tidy the files named, or all notebooks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if any is untidy")
    parser.add_argument("files", nargs="*", type=Path)
    args = parser.parse_args()
    untidy = 0
    for path in args.files or sorted(HERE.glob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        wanted = tidied(text)
        if text != wanted:
            untidy = 1
            print(path)
            if not args.check:
                path.write_text(wanted, encoding="utf-8")
    return untidy if args.check else 0


if __name__ == "__main__":
    sys.exit(main())
