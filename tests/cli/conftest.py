"""One run for all tests of this folder."""

import pytest

from jaxeff.cli import main
from tests.train.tiny import CONFIG


@pytest.fixture(scope="package")
def trained(tmp_path_factory):
    """A finished run. Not to be written to."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.py").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXEFF_CACHE", str(folder / "cache"))
        assert main(["train", str(folder / "tiny.py"), "--workdir", str(folder / "trained")]) == 0
    return folder / "trained"
