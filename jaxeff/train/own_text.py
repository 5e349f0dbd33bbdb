"""An experiment on the user's own files."""

import dataclasses
import os
from collections.abc import Sequence

from jaxeff.core.errors import UserError
from jaxeff.data import Text, TextData
from jaxeff.train.experiment import Experiment


def on_text(experiment: Experiment, paths: Sequence[str], field: str | None = None) -> Experiment:
    """The experiment with files or folders as its text, all else as it is. Short texts are cut finer, see `Text.finer`.

    field: of JSON lines, the one that holds their text.

    Raises UserError where the experiment is not on text, or there is no such file or folder.
    """
    if not isinstance(experiment.data, TextData):
        raise UserError(f"--data: this config trains on {type(experiment.data).__name__}, not on text")
    if not paths:
        raise UserError(f"--field {field}: of which text? give --data FILE as well")
    source = Text(tuple(os.path.abspath(os.path.expanduser(path)) for path in paths), field).finer()
    return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, source=source))
