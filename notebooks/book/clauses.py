"""Every mention of a clause of the specification links to it.

A Sphinx extension. Sources name clauses as ``ATTN-1``; the specification's page has a target of
that name before each of its headings (``sources.py`` puts them there).
"""

import re

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

PAGE = "specification"
CLAUSE = re.compile(r"^([A-Z]+)-(\d+) · (MUST|SHOULD) · (.*)", re.S)
LABELS = ("Why", "Source", "Who differs")
logger = logging.getLogger(__name__)


class Links(SphinxTransform):
    """Replace mentions by references, outside of code, titles and other links."""

    default_priority = 880  # after everything else has been parsed and before it is resolved

    def apply(self, **_kwargs) -> None:
        known = self.config.griffin_clauses
        mention = re.compile(rf"\b({'|'.join(sorted({c.split('-')[0] for c in known}))})-(\d+)\b")
        for text in list(self.document.findall(nodes.Text)):
            if _within(text, (nodes.literal, nodes.FixedTextElement, nodes.reference, nodes.title,
                              nodes.raw, nodes.math, nodes.caption, addnodes.pending_xref,
                              addnodes.desc_signature)):  # fmt: skip
                continue
            told, parts, end = text.astext(), [], 0
            for match in mention.finditer(told):
                if match[0] not in known:
                    logger.warning(f"no such clause: {match[0]}", location=text.parent)
                    continue
                parts += [nodes.Text(told[end : match.start()]), self.reference(match[0])]
                end = match.end()
            if parts:
                text.parent.replace(text, [*parts, nodes.Text(told[end:])])

    def reference(self, clause: str) -> nodes.Node:
        return addnodes.pending_xref(
            "", nodes.inline("", clause, classes=["clause"]), refdomain="std", reftype="ref",
            reftarget=clause.lower(), refexplicit=True, refwarn=True, refdoc=self.env.docname,
        )  # fmt: skip


class Titles(SphinxTransform):
    """Headings of clauses in three parts, and what begins a paragraph, for the style sheet."""

    default_priority = 870

    def apply(self, **_kwargs) -> None:
        if self.env.docname != PAGE:
            return
        for paragraph in list(self.document.findall(nodes.paragraph)):
            first = paragraph[0] if len(paragraph) else None
            label, colon, rest = first.astext().partition(":") if first else ("", "", "")
            if label == "Traps":  # ids for the suite's own lists
                paragraph.parent.remove(paragraph)
            elif colon and label in LABELS:
                told = nodes.inline("", label, classes=["label"])
                paragraph.replace(paragraph[0], [told, nodes.Text(rest)])
        for title in self.document.findall(nodes.title):
            match = CLAUSE.match(title.astext())
            if match is not None:
                group, number, force, _ = match.groups()
                first = title[0]
                rest = first.astext().split(" · ", 2)[2]
                title.replace(first, [
                    nodes.inline("", f"{group}-{number}", classes=["clause-name"]),
                    nodes.Text(" "),
                    nodes.inline("", force, classes=["clause-force", force.lower()]),
                    nodes.Text(" "),
                    nodes.Text(rest),
                ])  # fmt: skip


def _within(node: nodes.Node, kinds: tuple) -> bool:
    while node is not None:
        if isinstance(node, kinds):
            return True
        node = node.parent
    return False


def setup(app) -> dict:
    """Add the transforms, and the value that says which clauses there are."""
    app.add_config_value("griffin_clauses", [], "env")
    app.add_transform(Links)
    app.add_transform(Titles)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
