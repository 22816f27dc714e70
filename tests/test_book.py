"""The book: formulas, docstrings and notebooks as its pages show them, and what it writes over."""

import importlib
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the notebooks extra is not installed")
for name in ("sphinx", "latex2mathml"):
    pytest.importorskip(name, reason="the book extra is not installed")

BOOK = Path(__file__).parent.parent / "notebooks" / "book"


@pytest.fixture(scope="module", autouse=True)
def _on_the_path():
    sys.path.insert(0, str(BOOK))
    yield
    sys.path.remove(str(BOOK))


@pytest.fixture(scope="module")
def mathml():
    return importlib.import_module("mathml")


@pytest.fixture(scope="module")
def docstrings():
    return importlib.import_module("docstrings")


@pytest.fixture(scope="module")
def sources():
    return importlib.import_module("sources")


@pytest.fixture(scope="module")
def build():
    return importlib.import_module("build")


def words(math: str) -> list[str]:
    return [e.text for e in ET.fromstring(math).iter() if e.text and e.text.strip()]


@pytest.mark.parametrize(
    "latex",
    [
        r"h_t = a_t h_{t-1} + \sqrt{1 - a_t^2} \odot (i_t \odot x_t)",
        r"\log a_t = -c\, r_t \operatorname{softplus}(-\Lambda)",
        r"f = \begin{cases} 0 & p_t = 0 \\ a & \text{else} \end{cases}",
        r"\begin{aligned} r &= \sigma(x) \\ i &= \hat y + \bar z \end{aligned}",
        r"R_\theta = \begin{pmatrix} \cos\theta & -\sin\theta \\ \sin\theta & \cos\theta \end{pmatrix}",
        r"\underbrace{a h}_{\text{kept}} + \sum_{s=0}^{\min(K-1,\,p_t)} w_{K-1-s}\, u_{t-s}",
        r"\mathrm{softmax}\Bigl(\frac{q k^\top}{\sqrt{d}}\Bigr) \in \mathbb{R}^{T \times T}",
        r"\lvert x \rvert + |a| < \lfloor d / 2 \rfloor \bmod W, \quad \|x\|_2 \ll 1",
        r"\arg\max_i z_i \mapsto \mathcal{O}(T), \; \mathbf{h}, \ldots, \cdots",
    ],
)
def test_formulas_become_mathml(mathml, latex):
    for block in (False, True):
        made = mathml.formula(latex, block)
        root = ET.fromstring(made)
        assert root.tag == "math"
        assert root.get("display") == ("block" if block else "inline")
        assert not any("\\" in word or "&" in word for word in words(made))
    assert 'class="equation"' in mathml.equation(latex)
    assert "numbers" not in mathml.equation(latex)


@pytest.mark.parametrize(
    ("latex", "numbers"),
    [
        (r"a = b", []),
        (r"a = b \tag{3}", ["3"]),
        (r"a = b \tag*{(3)}", ["3"]),
        (r"a = b \qquad (12)", ["12"]),
        (r"a = b \quad \text{(4)}", ["4"]),
        (r"a = b. \tag{NORM-1}", ["NORM-1"]),
        (r"a = f \qquad (x)", []),
        (r"a = \quad (3) + b", []),
        (r"\begin{aligned} a &= b \\ c &= d \end{aligned} \qquad (2)", ["2"]),
        (r"\begin{aligned} a &= b \\ c &= d \tag{2} \end{aligned}", ["2"]),
        (r"\begin{align} a &= b \tag{1} \\ c &= d \tag{2} \\ \end{align}", ["1", "2"]),
        (
            r"\begin{aligned} a &= b & (1) \\ c &= d \\ e &= f \qquad (3) \end{aligned}",
            ["1", "", "3"],
        ),
    ],
)
def test_numbers_stand_at_the_right(mathml, latex, numbers):
    body, found = mathml.numbered(latex)
    assert found == numbers
    assert "tag" not in body
    made = mathml.equation(latex)
    shown = re.findall(r"<span>(.*?)</span>", made)
    assert shown == [f"({n})" * bool(n) for n in numbers]
    root = ET.fromstring(made)
    assert [child.get("class") for child in root] == ["formula", "numbers"][: 1 + bool(numbers)]
    if numbers:
        assert f"({numbers[0]})" not in "".join(words(ET.tostring(root[0][0], encoding="unicode")))


@pytest.mark.parametrize(
    ("latex", "told"),
    [
        (r"\foo x", "no such command"),
        (r"\frac", "not a formula"),
        (r"\left( a", "not a formula"),
        ("{a", "braces"),
        (r"a \\ b", "new line"),
        ("", "not a formula"),
    ],
)
def test_what_is_no_formula_is_an_error(mathml, latex, told):
    with pytest.raises(ValueError, match=told):
        mathml.formula(latex)


def test_what_browsers_draw_otherwise_is_put_right(mathml):
    assert "mspace" in mathml.formula(r"\log a")
    assert "mspace" not in mathml.formula(r"\log(a)")
    assert "LRU" in words(mathml.formula(r"\mathrm{LRU}(x)"))
    assert '<mi mathvariant="normal">x</mi>' in mathml.formula(r"b_{\mathrm{x}}")
    assert "a_param" in words(mathml.formula(r"\mathtt{a\_param}"))
    assert "bf" in words(mathml.formula(r"\operatorname{bf16}(x)"))
    forms = [e.get("form") for e in ET.fromstring(mathml.formula(r"|a| + |b|")).iter("mo")]
    assert forms == ["prefix", "postfix", None, "prefix", "postfix"]
    minus = [e.get("form") for e in ET.fromstring(mathml.formula(r"a - b = -c")).iter("mo")]
    assert minus == [None, None, "prefix"]


def test_indented_paragraphs_of_docstrings_are_literal(docstrings):
    before = ["About.", "", "    a_t = b_(t-1)", "    c", "", "More.", "", "Parameters", "----------",
              "x : int", "", "    About x."]  # fmt: skip
    after = docstrings.literal_blocks(before)
    assert after == [*before[:2], "::", "", *before[2:]]
    for kept in (["About::", "", "    code"], ["* point", "", "  more of it"], ["one", "two"]):
        assert docstrings.literal_blocks(kept) == kept


def test_signatures_are_those_of_the_source(docstrings):
    from griffin_np import config, rg_lru, state

    assert docstrings.signature_of("function", rg_lru.scan) == (
        "(a: Channels, x: Channels, h: Hidden)", "Channels",
    )  # fmt: skip
    parameters, result = docstrings.signature_of("method", state.State.load)
    assert not parameters.startswith("(cls")
    assert result == "State"
    parameters, _ = docstrings.signature_of("class", config.GriffinConfig)
    assert parameters.startswith("(*, width: int, ")
    assert "window: int = 2048" in parameters
    assert docstrings.signature_of("data", 3) is None
    assert docstrings.signature_of("function", len) is None
    assert docstrings.symbol("D_RNN") == r"D_{\mathrm{RNN}}"
    assert docstrings.symbol("h_t") == "h_{t}"


def code_that_is_shown(x):
    return "<b>" if x < 3 else x & 1


def test_controls_are_still_and_shown_code_is_code(sources, monkeypatch):
    from griffin_notebooks import reading

    output = nbformat.v4.new_output
    widget, html = sources.WIDGET, "<svg></svg>"
    displayed = []
    monkeypatch.setattr(reading, "display", displayed.append)
    reading.code(code_that_is_shown)
    code = {"text/html": displayed[0].data, "text/plain": "<HTML>"}
    cell = nbformat.v4.new_code_cell("explore()", outputs=[
        output("display_data", {widget: {"model_id": "1"}, "text/html": html, "text/plain": "a"}),
        output("display_data", code),
        output("stream", name="stderr", text="note"),
        output("stream", name="stdout", text="one\n"),
        output("stream", name="stderr", text="compiling the engine for this processor, once\n"),
        output("stream", name="stdout", text="two\n"),
    ])  # fmt: skip
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {widget: {}}})
    made = sources.of_pages(notebook)
    assert "widgets" not in made.metadata
    first, second, third, fourth = made.cells[0].outputs
    assert first.data == {"text/html": html, "text/plain": "a"}
    shown = 'def code_that_is_shown(x):\n    return "<b>" if x < 3 else x & 1'
    assert second.data == {"text/markdown": f"```python\n{shown}\n```"}
    assert third.text == "note"
    assert fourth.text == "one\ntwo\n"


def test_every_public_module_has_a_page(sources):
    import pkgutil

    import griffin_kernels
    import griffin_np

    listed = {m for package in sources.PACKAGES for m in sources.modules_of(package)}
    packages = set(sources.PACKAGES)
    for package in (griffin_np, griffin_kernels):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            private = any(part.startswith("_") for part in info.name.split("."))
            if not private and not info.name.startswith("griffin_np.cli"):  # a page of its own
                assert info.name in (packages if info.ispkg else listed), info.name
    assert all(sources.says(module) for module in listed)


def test_only_a_book_is_written_over(build, tmp_path):
    foreign, empty, book = (tmp_path / name for name in ("foreign", "empty", "book"))
    for folder in (foreign, empty, book):
        folder.mkdir()
    (foreign / "index.html").write_text("mine")
    (book / build.MARK).touch()
    file, link = tmp_path / "file", tmp_path / "link"
    file.touch()
    link.symlink_to(book)
    for fine in (tmp_path / "new", empty, book):
        build.check_out(fine)
    for path in (foreign, file, link):
        with pytest.raises(build.BookError, match="is no book made by this command"):
            build.check_out(path)
        with pytest.raises(build.BookError, match="is no book"):
            build.build(path)
    assert [p.name for p in foreign.iterdir()] == ["index.html"]


def test_executed_notebooks_must_be_ours_and_have_run(build, tmp_path):
    ours, theirs, target = (tmp_path / name for name in ("ours", "theirs", "target"))
    for folder in (ours, theirs, target):
        folder.mkdir()
    path = ours / "01_a.ipynb"

    def write(folder, source, count):
        cell = nbformat.v4.new_code_cell(source, execution_count=count)
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / path.name)

    write(ours, "1 + 1", None)
    with pytest.raises(build.BookError, match="does not exist"):
        build.taken([path], theirs, target)
    write(theirs, "1 + 2", 1)
    with pytest.raises(build.BookError, match="other cells"):
        build.taken([path], theirs, target)
    write(theirs, "1 + 1", None)
    with pytest.raises(build.BookError, match="have not been run"):
        build.taken([path], theirs, target)
    write(theirs, "1 + 1", 1)
    build.taken([path], theirs, target)
    assert (target / path.name).read_bytes() == (theirs / path.name).read_bytes()


@pytest.mark.parametrize(
    ("page", "fine"),
    [
        ('<script src="_static/a.js"></script><a href="https://arxiv.org">x</a>', True),
        ('<script src="https://cdn.example/a.js"></script>', False),
        ('<link rel="stylesheet" href="//cdn.example/a.css">', False),
        ('<img alt="a" src="http://example.org/a.png">', False),
        ("<style>@import url(https://fonts.example/a.css)</style>", False),
        ('<svg xmlns="http://www.w3.org/2000/svg"><use href="#a"/></svg>', True),
    ],
)
def test_pages_fetch_nothing(build, tmp_path, page, fine):
    (tmp_path / "index.html").write_text(page)
    if fine:
        build.check_offline(tmp_path)
    else:
        with pytest.raises(build.BookError, match="not for reading offline"):
            build.check_offline(tmp_path)
