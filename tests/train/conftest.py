"""Data that all tests of training share."""

import pytest

from tests.train.tiny import experiment


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """The tiny corpus, prepared once."""
    return experiment().data.prepare(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    """No test writes to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXEFF_CACHE", str(tmp_path_factory.mktemp("shared") / "cache"))
        yield
