"""Hypothesis profiles, and the folder of the large test data.

By default every run draws the same cases; HYPOTHESIS_PROFILE=explore draws new ones.
"""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("ci", derandomize=True, deadline=None, suppress_health_check=slow)
settings.register_profile("explore", deadline=None, print_blob=True, suppress_health_check=slow)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of the large test data; tests that need it are skipped where it is not."""
    folder = os.environ.get("GRIFFIN_NP_TEST_DATA")
    if not folder:
        pytest.skip("GRIFFIN_NP_TEST_DATA does not name the folder of the large test data")
    return Path(folder)


@pytest.fixture(scope="module")
def transformers_in_double():
    """The adapter of transformers, which computes in float64 as long as this lasts."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    from griffin_conformance.backends import transformers

    scan = transformers.theirs.RecurrentGemmaRglru._rnn_scan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float", torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr(scan, "__defaults__", (torch.float64,))
        yield transformers
