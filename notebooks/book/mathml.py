r"""Formulas as MathML, which browsers draw on their own: no scripts, and no fonts to fetch.

A Sphinx extension (``html_math_renderer = "mathml"``). latex2mathml translates. What browsers draw
otherwise than TeX (names of functions, columns, bars) is put right here, and a command that nobody
knows is an error rather than a picture of its name. ``\tag{3}``, or ``\qquad (3)`` at the end of a
formula or of one of its lines, becomes a number at the right margin.
"""

import html
import re
import xml.etree.ElementTree as ET

from latex2mathml.converter import convert

__all__ = ["equation", "formula", "numbered", "setup"]

ROWS = re.compile(
    r"\s*\\begin\{(align|aligned|gather|gathered|split)(\*?)\}(.*)\\end\{\1\2\}\s*", re.S
)
"""A formula that is nothing but lines below each other."""

NUMBER = re.compile(
    r"\\tag\*?\{\s*\(?([^{}()]*)\)?\s*\}"
    r"|(?:\\q?quad|&)\s*(?:\\text(?:rm)?\{\s*)?\(([0-9]+[a-z]?)\)\s*\}?\s*(?=[.,]?\s*\Z)"
)

RELATION = re.compile(
    "[~±\N{MINUS-OR-PLUS SIGN}\N{LEFTWARDS ARROW}-\N{LEFT RIGHT OPEN-HEADED ARROW}\u27f5-\u27ff]"
)
"""Signs that latex2mathml takes for letters."""

ROW = ("math", "mrow", "mtd", "mstyle", "msqrt")
FUNCTIONS = set(
    "arccos arcsin arctan arg cos cosh cot det dim exp gcd inf ker lg lim ln log max min sin sinh "
    "sup tan tanh".split()
)
LIMITS = ("inf", "lim", "max", "min", "sup")
SIGNS = ("\N{MINUS SIGN}", "+", "±")
THIN = "0.167em"
ROOM = {"/": "0", ":": "0.2778em"}
MATCHING = {r"\lvert": "prefix", r"\rvert": "postfix", r"\lVert": "prefix", r"\rVert": "postfix"}
ENDS = {"⌊": "prefix", "⌈": "prefix", "⟨": "prefix", "⌋": "postfix", "⌉": "postfix", "⟩": "postfix"}


def numbered(latex: str) -> tuple[str, list[str]]:
    """A formula without its numbers, and these.

    Parameters
    ----------
    latex : str

    Returns
    -------
    latex : str
    numbers : list of str
        One for the formula, or, where several lines have numbers, one for each line ("" for none);
        empty if there is none at all.
    """
    rows = ROWS.fullmatch(latex)
    if rows is None:
        latex, number = _number(latex)
        return latex, [number] if number else []
    found = [_number(row) for row in _lines(rows[3])]
    body = r"\\".join(row for row, _ in found)
    # latex2mathml knows neither the inner forms nor split.
    kind = "gather*" if rows[1].startswith("gather") else "align*"
    numbers = [number for _, number in found]
    if sum(map(bool, numbers)) < 2:
        numbers = [number for number in numbers if number]
    return rf"\begin{{{kind}}}{body}\end{{{kind}}}", numbers


def _number(latex: str) -> tuple[str, str]:
    match = NUMBER.search(latex)
    if match is None:
        return latex, ""
    return latex[: match.start()] + latex[match.end() :], match[1] or match[2]


def _lines(body: str) -> list[str]:
    r"""Split at ``\\`` that stands in no inner environment."""
    lines, depth = [""], 0
    for token in re.split(r"(\\begin\{|\\end\{|\\\\(?:\[[^\]]*\])?)", body):
        depth += {"\\begin{": 1, "\\end{": -1}.get(token, 0)
        if token.startswith(r"\\") and not depth:
            lines.append("")
        else:
            lines[-1] += token
    return lines if lines[-1].strip() else lines[:-1]


def equation(latex: str) -> str:
    """HTML of a formula that stands on its own, with its numbers at the right.

    Raises
    ------
    ValueError
        As of :func:`formula`.
    """
    body, numbers = numbered(latex)
    shown = "".join(f"<span>{f'({html.escape(n)})' * bool(n)}</span>" for n in numbers)
    side = f'<div class="numbers">{shown}</div>' * bool(numbers)
    return (
        f'<div class="equation"><div class="formula">{formula(body, block=True)}</div>{side}</div>'
    )


def formula(latex: str, block: bool = False) -> str:
    """MathML of a formula.

    Parameters
    ----------
    latex : str
        Without dollars and numbers.
    block : bool
        Whether it stands on its own.

    Returns
    -------
    str
        A ``<math>`` element, well-formed.

    Raises
    ------
    ValueError
        If it is not LaTeX, or has a command that is not known.
    """
    # Inside of a formula; as a whole they are told apart by `numbered`.
    latex = re.sub(r"\\(begin|end)\{(aligned|split)\}", r"\\\1{align*}", latex.strip())
    latex = re.sub(r"\\(begin|end)\{gathered\}", r"\\\1{gather*}", latex)
    latex = re.sub(r"\\operatorname\*?(?=\{[^{}]*\d[^{}]*\})", r"\\mathrm", latex)
    latex = re.sub(r"\\mathrm\{([a-zA-Z])\}", r"\\text{\1}", latex)
    latex = re.sub(r"\\arg(?![a-zA-Z])", r"\\operatorname{arg}", latex)
    braces = re.findall(r"(?<!\\)[{}]", latex)
    if braces.count("{") != braces.count("}"):
        raise ValueError(f"braces do not match: {latex!r}")
    try:
        made = convert(latex, display="block" if block else "inline")
        # Attributes of the document's own dialect would be the only ones with a namespace.
        math = ET.fromstring(made.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "", 1))
    except Exception as error:  # each of its mistakes is an exception of its own kind
        raise ValueError(f"not a formula: {latex!r} ({error!r})") from None
    for element in math.iter():
        element.text = re.sub(r"\\(?=[_%&#$])", "", element.text or "")
        if "\\" in element.text:
            raise ValueError(f"no such command in a formula: {element.text} in {latex!r}")
        if element.get("linebreak"):
            raise ValueError(f"a new line outside of an environment with lines: {latex!r}")
    _bars(math, latex)
    _tidy(math, block)
    math.set("alttext", " ".join(latex.split()))
    return ET.tostring(math, encoding="unicode")


def _bars(math: ET.Element, latex: str) -> None:
    """Tell which vertical bars open and which close: browsers take all for relations."""
    bars = [e for e in math.iter("mo") if e.text in ("|", "‖") and not e.get("form")]
    told = re.findall(
        r"\\[lr]vert|\\[lr]Vert|\\\||\\mid|\||\\(?:left|right|[bB]ig+[lrm]?)\s*\\?\|", latex
    )
    told = [t for t in told if not t.startswith((r"\left", r"\right"))]
    opened = False
    for i, bar in enumerate(bars):
        word = told[i] if len(told) == len(bars) else "|"
        if word == r"\mid":
            continue
        bar.set("form", MATCHING.get(word, "postfix" if opened else "prefix"))
        bar.set("stretchy", bar.get("stretchy", "false"))
        bar.set("lspace", "0")
        bar.set("rspace", "0")
        opened = bar.get("form") == "prefix"


def _tidy(parent: ET.Element, block: bool) -> None:
    """What TeX does and a browser does not, from the leaves up."""
    for child in parent:
        _tidy(child, block)
    if block and parent.tag == "msub" and (parent[0].text or "") in LIMITS:
        parent.tag = "munder"
    if parent.tag == "mtable" and parent.get("columnspacing"):
        parent.set("class", "aligned")
    for name in ("columnalign", "columnspacing", "rowspacing"):
        value = parent.attrib.pop(name, None)
        if name == "columnalign" and parent.tag == "mtd" and value:
            parent.set("style", f"text-align: {value}")
    if parent.get("mathvariant") == "bold" and parent.tag in ("mtext", "mi"):
        parent.set("style", "font-weight: bold")
        del parent.attrib["mathvariant"]
    children: list[ET.Element] = []
    for child in parent:
        last = children[-1] if children else None
        if child.tag == "mspace" and child.get("width", "").startswith("negative"):
            continue  # browsers have no room below nothing
        _correct(child, last)
        if last is not None and _face(child) and _face(last) == _face(child):
            last.text = (last.text or "") + (child.text or "")  # a word, not letters
        else:
            children.append(child)
    for child in children:
        if _face(child) == "monospace":
            child.set("style", "font-family: monospace")
            child.set("mathvariant", "normal")
        if _face(child) and len(child.text or "") > 1:
            del child.attrib["mathvariant"]  # upright in any case
    parent[:] = _spaced(children) if parent.tag in ROW else children


def _correct(element: ET.Element, last: ET.Element | None) -> None:
    """Make an element what it should have been, for a browser; ``last`` stands before it."""
    text = element.text or ""
    if text in ENDS:
        element.tag = "mo"
        element.set("form", ENDS[text])
        element.set("stretchy", element.get("stretchy", "false"))
    elif RELATION.fullmatch(text):
        element.tag = "mo"
    elif element.tag == "mi" and "\N{GREEK CAPITAL LETTER ALPHA}" <= text <= "Ω":
        element.set("mathvariant", "normal")
    elif element.tag == "mtext" and any(map(str.isalpha, text)):
        # Not a space, which mtext counts as: operators beside it would have no room.
        element.tag = "mi"
        if len(text) == 1:
            element.set("mathvariant", "normal")
    elif text == "\N{INFINITY}":
        element.tag = "mi"
    elif text == "\N{MIDDLE DOT}":
        element.text = "\N{DOT OPERATOR}"
    elif text in ROOM:
        element.tag = "mo"
        element.set("lspace", ROOM[text])
        element.set("rspace", ROOM[text])
    if text in SIGNS and (last is None or _opens(last)):
        element.set("form", "prefix")


def _spaced(children: list[ET.Element]) -> list[ET.Element]:
    """Names of functions have room around them, but not before a bracket."""
    spaced: list[ET.Element] = []
    for i, child in enumerate(children):
        name = _function(child)
        if name is None:
            spaced.append(child)
            continue
        name.tag = "mi"
        if i and _is_operand(children[i - 1]):
            spaced.append(ET.Element("mspace", width=THIN))
        spaced.append(child)
        if i + 1 < len(children) and _is_operand(children[i + 1], after=True):
            spaced.append(ET.Element("mspace", width=THIN))
    return spaced


def _opens(element: ET.Element) -> bool:
    """Whether a sign after this is a number's own."""
    bar = element.text == "|" and element.get("form") != "postfix"
    return element.tag == "mo" and (bar or element.text in tuple("(,[{;:=<>≤≥≈←→⇒⟨"))


def _face(element: ET.Element) -> str:
    """``normal`` or ``monospace`` for letters that are so on purpose, otherwise nothing."""
    face = element.get("mathvariant", "") if element.tag == "mi" else ""
    return face if face in ("normal", "monospace") else ""


def _function(element: ET.Element) -> ET.Element | None:
    """The name, if this is a function, with or without indices."""
    while element.tag in ("msub", "msup", "msubsup", "munder", "mover", "munderover"):
        element = element[0]
    text = (element.text or "").strip()
    word = len(text) > 1 and text.replace("-", "").isalnum()
    if (element.tag == "mo" and word and text != "mod") or text in FUNCTIONS:
        return element
    return None


def _is_operand(element: ET.Element, after: bool = False) -> bool:
    """Whether it is something that a function's name must not touch."""
    if element.tag == "mo":
        return (element.text or "") in (")", "]", "|") and not after
    if element.tag == "mrow" and len(element):  # \left( ... \right) is a row of its own
        edge = element[0 if after else -1]
        if edge.tag == "mo" and edge.get("fence") == "true":
            return not after
    return element.tag not in ("mspace", "mtable") and bool(element.text or len(element))


def setup(app) -> dict:
    """Register the renderer."""
    from docutils import nodes
    from sphinx.transforms import SphinxTransform
    from sphinx.util import logging

    logger = logging.getLogger(__name__)

    def shown(node, make) -> str:
        try:
            return make(node.astext())
        except ValueError as error:
            logger.warning(str(error), location=node)
            return f"<code>{html.escape(node.astext())}</code>"

    def inline(self, node) -> None:
        self.body.append(shown(node, formula))
        raise nodes.SkipNode

    def block(self, node) -> None:
        self.body.append(shown(node, equation))
        raise nodes.SkipNode

    class Together(SphinxTransform):
        """No line ends between a formula and the full stop behind it."""

        default_priority = 870

        def apply(self, **_kwargs) -> None:
            for node in list(self.document.findall(nodes.math)):
                after = node.next_node(descend=False, siblings=True)
                told = after.astext() if isinstance(after, nodes.Text) else ""
                mark = re.match(r"[.,;:!?)\u2019\u201d]+", told)
                if mark:
                    after.parent.replace(after, nodes.Text(told[mark.end() :]))
                    unit = nodes.inline("", "", classes=["together"])
                    node.parent.replace(node, unit)
                    unit += [node, nodes.Text(mark[0])]

    app.add_transform(Together)
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
