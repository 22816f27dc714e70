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
