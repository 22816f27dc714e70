"""The sources of the book's pages, laid out for Sphinx in a folder of their own."""

import ast
import html
import importlib
import importlib.util
import io
import os
import pkgutil
import re
from contextlib import redirect_stdout, suppress
from pathlib import Path

import nbformat

from griffin_conformance.clauses import HEADING, specification

__all__ = ["lay_out", "of_pages"]

PARTS = (
    ("Begin", (1,)),
    ("How it works", (2, 3, 4, 5, 6)),
    ("In use", (7, 8)),
    ("True and fast", (9, 10, 11, 12)),
)
"""The notebooks, on the front page."""

PACKAGES = {
    "griffin_np": "The model, and the call that every engine answers",
    "griffin_np.checkpoints": "Checkpoint formats",
    "griffin_kernels": "Benchmarks",
    "griffin_kernels.cpu": "The CPU engine",
    "griffin_kernels.cpu.isa": "The CPU engine: products of integers, by instruction set",
    "griffin_kernels.xla": "The model in JAX: inference and training",
}
FIRST = ("notation", "rg_lru", "layers", "attention", "model", "base", "state", "params", "config")
"""What to read first, of a package."""

SHOWN_CODE = re.compile(r'<div class="highlight"><pre[^>]*>(.*)</pre></div>\s*', re.S)
"""What ``reading.code`` shows."""

WIDGET = "application/vnd.jupyter.widget-view+json"


def lay_out(notebooks: Path, target: Path) -> None:
    """Write all sources.

    Parameters
    ----------
    notebooks : Path
        A folder of executed ones.
    target : Path
        A folder that does not exist.
    """
    (target / "notebooks").mkdir(parents=True)
    (target / "api").mkdir()
    told = []
    for path in sorted(notebooks.glob("*.ipynb")):
        notebook = of_pages(nbformat.read(path, as_version=4))
        nbformat.write(notebook, target / "notebooks" / path.name)
        told.append((path.stem, *_about(notebook)))
    text = HEADING.sub(r"(\1)=\n\g<0>", specification())  # something to link to
    (target / "specification.md").write_text(text, encoding="utf-8")
    (target / "symbols.rst").write_text(SYMBOLS, encoding="utf-8")
    (target / "commands.rst").write_text(_commands(), encoding="utf-8")
    _api(target / "api")
    (target / "index.md").write_text(_front(told), encoding="utf-8")


def of_pages(notebook):
    """A notebook as pages show it: still pictures for controls, code that looks like code."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = _joined([output for output in cell.outputs if not _is_noise(output)])
        for output in cell.get("outputs", []):
            data = output.get("data")
            if not data:
                continue
            data.pop(WIDGET, None)  # beside it stands a still picture
            shown = SHOWN_CODE.fullmatch(data.get("text/html", ""))
            if shown:  # in the pages' own colours
                text = html.unescape(re.sub(r"<[^>]*>", "", shown[1])).strip("\n")
                output["data"] = {"text/markdown": f"```python\n{text}\n```"}
                output["metadata"] = {}
    return notebook


def _is_noise(output) -> bool:
    """Whether it says only that something was compiled for the first time on a machine."""
    lines = output.get("text", "").splitlines() if output.get("name") == "stderr" else []
    return bool(lines) and all(line.startswith("compiling ") for line in lines)


def _joined(outputs: list) -> list:
    """Outputs in which a stream that follows itself is one."""
    made: list = []
    for output in outputs:
        name = output.get("name")
        if made and name is not None and made[-1].get("name") == name:
            made[-1]["text"] += output["text"]
        else:
            made.append(output)
    return made


def _about(notebook) -> tuple[str, str, str]:
    """Title, first paragraph and minutes of a notebook."""
    text = notebook.cells[0].source
    title, _, rest = text.partition("\n")
    first = rest.strip().split("\n\n")[0]
    minutes = re.search(r"(\d+) minutes", text)
    return title.lstrip("# "), " ".join(first.split()), minutes[1] if minutes else ""


def _front(told: list[tuple[str, str, str, str]]) -> str:
    from mathml import formula

    from griffin_notebooks import diagrams

    def written(text: str) -> str:
        """A little of Markdown, inside HTML."""
        parts = re.split(r"\$([^$]+)\$", text)
        for i, part in enumerate(parts):
            if i % 2:
                parts[i] = formula(part)
                continue
            part = html.escape(part, quote=False)
            part = re.sub(r"`([^`]+)`", r"<code>\1</code>", part)
            part = re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", part)
            parts[i] = re.sub(r"\*([^*]+)\*", r"<i>\1</i>", part)
        return "".join(parts)

    by_number = {int(stem[:2]): (stem, *rest) for stem, *rest in told}
    blocks = []
    for name, numbers in PARTS:
        cards = []
        for number in numbers:
            if number not in by_number:
                continue
            stem, title, about, minutes = by_number[number]
            title = title.partition(" · ")[2] or title
            time = f'<span class="minutes">{minutes} min</span>' if minutes else ""
            cards.append(
                f'<a class="card" href="notebooks/{stem}.html"><span class="number">{number}</span>'
                f'<span class="words"><b>{written(title)}</b> {time}<br>{written(about)}</span></a>'
            )
        if cards:
            blocks.append(
                f'<h3 class="part">{name}</h3>\n<div class="cards">{"".join(cards)}</div>'
            )
    entries = "\n".join(f"notebooks/{stem}" for stem, *_ in told)
    text = (Path(__file__).parent / "index.md").read_text(encoding="utf-8")
    for name, value in (
        ("MAP", "\n".join(blocks)), ("ENTRIES", entries),
        ("PICTURE", diagrams.rg_lru()),
    ):  # fmt: skip
        text = text.replace(f"@{name}@", value)
    return text


def modules_of(package: str) -> list[str]:
    """Public modules right inside a package, in reading order."""
    path = importlib.import_module(package).__path__
    names = [
        m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_") and not m.ispkg
    ]
    known = {name: i for i, name in enumerate(FIRST)}
    names.sort(key=lambda name: (known.get(name, len(known)), name))
    return [f"{package}.{name}" for name in names]


def says(module: str) -> str:
    """The first paragraph of a module's docstring."""
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    text = ast.get_docstring(ast.parse(Path(found.origin).read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def _api(target: Path) -> None:
    for package, about in PACKAGES.items():
        modules = modules_of(package)
        lines = [_title(about), says(package), "", TABLE]
        for module in modules:
            page = module.removeprefix(f"{package}.")
            lines += [f"   * - :doc:`{page} <{module}>`", f"     - {says(module)}"]
            text = f"{_title(module)}\n.. automodule:: {module}\n"
            (target / f"{module}.rst").write_text(text, encoding="utf-8")
        if package == "griffin_np":  # what the package itself exports
            lines[1] = ".. automodule:: griffin_np\n   :no-members:\n"
        short = [f"{module.removeprefix(f'{package}.')} <{module}>" for module in modules]
        lines += ["", _toctree(short)]
        (target / f"{package}.rst").write_text("\n".join(lines), encoding="utf-8")
    lines = [_title("The API"), API, TABLE]
    for package, about in PACKAGES.items():
        lines += [f"   * - :doc:`{package} <{package}>`", f"     - {about}"]
    (target / "index.rst").write_text(
        "\n".join([*lines, "", _toctree(list(PACKAGES))]), encoding="utf-8"
    )


def _title(text: str) -> str:
    return f"{text}\n{'=' * len(text)}\n"


def _toctree(entries: list[str]) -> str:
    return ".. toctree::\n   :hidden:\n\n" + "\n".join(f"   {entry}" for entry in entries) + "\n"


def _commands() -> str:
    """The help of every verb, as it is printed."""
    from griffin_np.cli import VERBS, main

    os.environ |= {"COLUMNS": "96", "NO_COLOR": "1"}
    parts = [_title("The command line"), COMMANDS]
    for verb, summary in VERBS.items():
        stream = io.StringIO()
        with redirect_stdout(stream), suppress(SystemExit):
            main([verb, "--help"])
        heading = f"griffin-np {verb}"
        shown = "\n".join(f"   {line}" for line in stream.getvalue().splitlines())
        parts.append(f"{heading}\n{'-' * len(heading)}\n\n{summary[0].upper()}{summary[1:]}.\n\n"
                     f".. code-block:: none\n\n{shown}\n")  # fmt: skip
    return "\n".join(parts)


TABLE = ".. list-table::\n   :class: modules\n   :widths: auto\n"

SYMBOLS = """\
Symbols
=======

.. automodule:: griffin_np.notation
   :no-members:
   :no-index:

The aliases of shapes, ``Stream`` to ``Positions``, are listed in :mod:`griffin_np.notation`.
"""

API = """\
Made from the docstrings. If you are here to read how the model is computed, five modules are all
of it: :mod:`griffin_np.rg_lru`, :mod:`griffin_np.layers`, :mod:`griffin_np.attention`,
:mod:`griffin_np.model`, and :mod:`griffin_np.notation` for the symbols.

"""

COMMANDS = """\
What ``griffin-np VERB --help`` prints.

"""
