"""Runs of these tests share a compilation cache of their own."""

import os

import pytest


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A compilation cache for child processes."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session", autouse=True)
def own_cache(cache):
    """Nothing is written to the user's cache."""
    before = os.environ.get("SEQMODELS_CACHE")
    os.environ["SEQMODELS_CACHE"] = str(cache)
    yield
    if before is None:
        del os.environ["SEQMODELS_CACHE"]
    else:
        os.environ["SEQMODELS_CACHE"] = before
