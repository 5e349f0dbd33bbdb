"""Data that all tests of training share."""

import pytest

from tests.train.tiny import CONFIG, experiment


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


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Where the processes of `server` work, beside the config tiny.py."""
    folder = tmp_path_factory.mktemp("forked")
    (folder / "tiny.py").write_text(CONFIG)
    return folder


@pytest.fixture(scope="session")
def server(folder):
    """Starts `jaxeff ...` as processes, which share what they have compiled; see `tests.train.forked`."""
    from tests.train.forked import forker

    with forker(folder) as server:
        yield server
