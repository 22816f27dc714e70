"""What a certificate becomes for its readers: people, CI servers, web pages and other programs.

All of them take a certificate as :meth:`Certificate.to_dict` or :func:`load_certificate` gives
it, in any precision, of any backend, and leave out what it does not have.
"""

from griffin_conformance.reports.badges import badge, badge_svg
from griffin_conformance.reports.comparing import Change, Difference, compare
from griffin_conformance.reports.junit import as_junit, write_junit
from griffin_conformance.reports.loading import CertificateError, load_certificate, read_schema
from griffin_conformance.reports.markdown import as_markdown
from griffin_conformance.reports.page import as_html, write_html
from griffin_conformance.reports.text import as_line, as_text, write_json
from griffin_conformance.reports.values import write

__all__ = [
    "CertificateError",
    "Change",
    "Difference",
    "as_html",
    "as_junit",
    "as_line",
    "as_markdown",
    "as_text",
    "badge",
    "badge_svg",
    "compare",
    "load_certificate",
    "read_schema",
    "write",
    "write_html",
    "write_json",
    "write_junit",
]
