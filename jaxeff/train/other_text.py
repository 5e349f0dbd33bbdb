"""Text that a run was not trained on, read as the run reads its own."""

import os
from collections.abc import Sequence

from jaxeff.core.errors import UserError
from jaxeff.data import Text, TextData
from jaxeff.data.pipeline import EvalBatches
from jaxeff.data.rows import rows_of
from jaxeff.train.progress import Silent
from jaxeff.train.trained import Trained


def batches_of(
    run: Trained, paths: str | Sequence[str], field: str | None = None, report: Silent | None = None
) -> EvalBatches:
    """Batches for evaluation: files or folders as one split, by the run's own tokenizer, in rows of the run's length.

    field: of JSON lines, the one that holds their text.

    Raises UserError for a run on something else than text, and for text that is not there, is empty or cannot be read.
    """
    data, report = run.experiment.data, (report or Silent()).stage
    if not isinstance(data, TextData):
        raise UserError(
            f"this run was trained on {type(data).__name__}, not on text: it has no tokenizer to read text with"
        )
    source = Text(paths, field)
    texts = [document.text for document in source.documents(report) if document.text]
    if not texts:
        raise UserError(f"there is no text in {', '.join(map(os.fspath, source.paths))}")
    rows = rows_of(texts, run.prepared.tokenizer, data.seq_len, "the text", report, data.packed)
    return EvalBatches(rows, batch_size=data.batch_size, token_bytes=run.prepared.token_bytes)
