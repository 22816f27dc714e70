"""Docstrings as pages: signatures as they stand in the source, and indented text as it stands.

A Sphinx extension. Annotations keep the names that the source uses (``Channels``, not what it is an
alias of), linked where the book has a place for them. A paragraph that is indented for no other
reason is a formula or a drawing in plain characters, and is shown as such.
"""

import ast
import inspect
import re
import sys
import textwrap
from functools import cache
from itertools import pairwise

__all__ = ["literal_blocks", "setup", "signature_of"]

SECTION = re.compile(r"^-{3,}\s*$")
LIST = re.compile(r"^\s*([-*+]|\d+[.)])\s")
OWN = ("griffin_np", "griffin_kernels")
GLOSSARY = "griffin_np.notation"
LONGEST_VALUE = 60


def literal_blocks(lines: list[str]) -> list[str]:
    """Mark indented paragraphs as literal, up to the first section of numpydoc.

    Parameters
    ----------
    lines : list of str
        A docstring.

    Returns
    -------
    list of str
    """
    end = next((i - 1 for i, line in enumerate(lines) if i and SECTION.match(line)), len(lines))
    made: list[str] = []
    before, inside = "", False
    for i, line in enumerate(lines[:end]):
        indented = line.startswith("  ") and bool(line.strip())
        if indented and not inside and i and not lines[i - 1].strip():
            inside = True
            if before and not before.endswith("::") and not LIST.match(before):
                made += ["::", ""]
        if line.strip() and not indented:
            inside, before = False, line.rstrip()
        made.append(line)
    return made + lines[end:]


def signature_of(what: str, thing: object) -> tuple[str, str] | None:
    """Parameters and result of a function, method or class as its source has them.

    Parameters
    ----------
    what : str
        What Sphinx takes it for.
    thing : object

    Returns
    -------
    parameters, result : str
        Or None, where there is no source.
    """
    if what == "class":
        node = _parsed(thing)
        return (_of_class(thing, node), "") if isinstance(node, ast.ClassDef) else None
    if what not in ("function", "method"):
        return None
    node = _parsed(inspect.unwrap(getattr(thing, "__func__", thing)))
    if not isinstance(node, ast.FunctionDef):
        return None
    static = any(ast.unparse(d) == "staticmethod" for d in node.decorator_list)
    return _signature(node, bound=what == "method" and not static)


def _parsed(thing: object) -> ast.stmt | None:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]  # type: ignore[arg-type]
    except (OSError, TypeError, SyntaxError):
        return None


class _Unquoted(ast.NodeTransformer):
    """Annotations of what is not defined yet, without their quotes."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, str):
            return ast.parse(node.value, mode="eval").body
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        return node if ast.unparse(node.value) == "Literal" else self.generic_visit(node)


def _annotation(node: ast.expr) -> str:
    return ast.unparse(_Unquoted().visit(node))


def _signature(node: ast.FunctionDef, bound: bool) -> tuple[str, str]:
    parameters = node.args
    if bound:
        (parameters.posonlyargs or parameters.args).pop(0)
    every = [*parameters.posonlyargs, *parameters.args, *parameters.kwonlyargs]
    for one in [*every, parameters.vararg, parameters.kwarg]:
        if one is not None and one.annotation is not None:
            one.annotation = _Unquoted().visit(one.annotation)
    result = _annotation(node.returns) if node.returns is not None else ""
    return f"({ast.unparse(parameters)})", result


def _of_class(thing, node: ast.ClassDef) -> str:
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            return _signature(part, bound=True)[0]
    if not hasattr(thing, "__dataclass_fields__") and not hasattr(thing, "_fields"):
        return ""
    told = []
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and "ClassVar" not in ast.unparse(part.annotation):
            default = f" = {ast.unparse(part.value)}" if part.value is not None else ""
            default = " = ..." if default.startswith(" = field(") else default
            told.append(f"{ast.unparse(part.target)}: {_annotation(part.annotation)}{default}")
    keywords = any("kw_only=True" in ast.unparse(decorator) for decorator in node.decorator_list)
    return f"({', '.join(['*'] * bool(keywords and told) + told)})"


def _place(name: str, module: str) -> str | None:
    """The full name of what a module calls so, if it is a class of ours or in the glossary."""
    value = getattr(sys.modules.get(module), name.split(".")[0], None)
    if inspect.isclass(value) and value.__module__.split(".")[0] in OWN:
        return f"{value.__module__}.{value.__qualname__}"
    if value is not None and getattr(sys.modules.get(GLOSSARY), name, None) is value:
        return f"{GLOSSARY}.{name}" if name in _values(GLOSSARY) else None
    return None


@cache
def _values(module: str) -> dict[str, str]:
    """The constants of a module that have a docstring, as the source gives their values."""
    body = ast.parse(inspect.getsource(sys.modules[module])).body
    found = {}
    for node, after in pairwise(body):
        told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(node, ast.Assign) and told and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = ast.unparse(node.value)
    return found


def symbol(text: str) -> str:
    r"""A symbol of the glossary as a formula: ``D_RNN`` is ``D_{\mathrm{RNN}}``."""
    if text == "Lambda":
        return r"\Lambda"
    letter, _, index = text.partition("_")
    if len(index) > 1:
        index = rf"\mathrm{{{index}}}"
    return f"{letter}_{{{index}}}" if index else letter


def setup(app) -> dict:
    """Connect to autodoc, and look after what it makes."""
    import numba.extending
    from docutils import nodes
    from sphinx import addnodes
    from sphinx.transforms import SphinxTransform
    from sphinx.util import inspect as sphinx_inspect

    # What is compiled shows itself as the function that was written.
    def plain(function=None, **_options):
        return function if function is not None else lambda written: written

    numba.extending.intrinsic = plain
    # "alias of Annotated[...]" says less than the name and its sentence.
    sphinx_inspect.isgenericalias = lambda _thing: False

    class Signatures(SphinxTransform):
        """Types lead to where they are described; constants have the values of the source."""

        default_priority = 890

        def apply(self, **_kwargs) -> None:
            for signature in list(self.document.findall(addnodes.desc_signature)):
                module = signature.get("module")
                for link in list(signature.findall(addnodes.pending_xref)):
                    place = _place(link["reftarget"], module)
                    if place is None:  # ``bytes`` is no field of that name
                        link.parent.replace(link, link.children)
                    else:
                        link["reftarget"] = place
                        link.attributes.pop("refspecific", None)
                if signature.parent["objtype"] == "data" and module in sys.modules:
                    for told in list(signature.findall(addnodes.desc_annotation)):
                        if told.astext().lstrip().startswith("="):
                            told.parent.remove(told)
                    value = _values(module).get(signature["fullname"], "")
                    if 0 < len(value) <= LONGEST_VALUE:
                        name = signature.next_node(addnodes.desc_name)
                        place = name.parent.index(name) + 1
                        name.parent.insert(place, addnodes.desc_annotation("", f" = {value}"))
            for paragraph in list(self.document.findall(nodes.paragraph)):
                if paragraph.astext() == "Bases: object":
                    paragraph.parent.remove(paragraph)

    class Symbols(SphinxTransform):
        """The glossary's first column, as formulas."""

        default_priority = 860

        def apply(self, **_kwargs) -> None:
            if self.env.docname not in ("symbols", f"api/{GLOSSARY}"):
                return
            for table in self.document.findall(nodes.table):
                rows = list(table.findall(nodes.row))
                if rows[0][0].astext() != "symbol":
                    continue
                for row in rows[1:]:
                    names, _, number = row[0].astext().partition(" (")
                    inner = nodes.paragraph()
                    for i, name in enumerate(names.split(", ")):
                        inner += nodes.Text(", " * bool(i))
                        inner += nodes.math("", symbol(name))
                    if number:
                        inner += nodes.Text(f" \N{NO-BREAK SPACE}({number}")
                    row[0].children = []
                    row[0] += inner

    def signature(_app, what, _name, thing, _options, parameters, _result):
        told = signature_of(what, thing) if parameters is not None else None
        return told or (None, None)  # leave it as it is, and ask nobody else

    def docstring(_app, _what, _name, _thing, _options, lines):
        lines[:] = literal_blocks(lines)

    app.add_transform(Signatures)
    app.add_transform(Symbols)
    app.connect("autodoc-process-signature", signature, priority=100)
    app.connect("autodoc-process-docstring", docstring, priority=100)  # before numpydoc
    return {"parallel_read_safe": True, "parallel_write_safe": True}
