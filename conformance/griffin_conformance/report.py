"""Where the text report was before :mod:`griffin_conformance.reports`."""

from griffin_conformance.reports.text import as_line, as_text, write_json

__all__ = ["as_line", "as_text", "write_json"]
