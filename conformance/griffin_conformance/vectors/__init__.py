"""Golden vectors: inputs, what is right for them, and how far from it is right, as files.

A test suite in any language can use them without Python: ``data/README.md`` says how. The truth is
the oracle's, what is allowed is the envelope's. :func:`export` makes the files,
:func:`check_files` tells whether a folder of them is whole, and :func:`verify` runs a backend over
them.
"""

from griffin_conformance.vectors.exporting import export
from griffin_conformance.vectors.files import DATA, VectorsError, check_files
from griffin_conformance.vectors.verifying import VectorResult, verify

__all__ = ["DATA", "VectorResult", "VectorsError", "check_files", "export", "verify"]
