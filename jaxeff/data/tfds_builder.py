"""The TFDS builder of a corpus: ArrayRecord files, the one format that reads back without TensorFlow.

This module imports tensorflow_datasets (which leaves TensorFlow alone); import it inside functions only.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from jaxeff.data.cache import Report, silent
from jaxeff.data.documents import Document

_READ_AT_ONCE = 256


class TextCorpus(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Documents with their text and origin, split as the caller has decided.

    Args:
      splits: split name -> documents; keys are unique within a split, none is empty of documents.
      data_dir: where the record files go.
      report: told of every document that is written.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "UTF-8 text and the key of the document it came from."}

    def __init__(self, *, splits: dict[str, list[Document]], data_dir: str, report: Report = silent):
        self._documents, self._report, self._n_written = splits, report, 0
        super().__init__(data_dir=data_dir, file_format="array_record")

    # TFDS prints two lines about a download; progress is the caller's business.
    def _log_download_bytes(self) -> None: ...

    def _log_download_done(self) -> None: ...

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"key": tfds.features.Text(), "text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, description="Documents of text.", features=features)

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(documents) for name, documents in self._documents.items()}

    def _generate_examples(self, documents):
        total = sum(map(len, self._documents.values()))
        for document in documents:
            self._n_written += 1
            self._report("writing the corpus", self._n_written, total)
            yield document.key, {"key": document.key, "text": document.text}


def write(splits: dict[str, list[Document]], folder: Path, report: Report = silent) -> str:
    """Writes the splits below `folder`; the path of the data set relative to it."""
    tfds.disable_progress_bar()
    builder = TextCorpus(splits=splits, data_dir=str(folder), report=report)
    builder.download_and_prepare()
    shutil.rmtree(folder / "downloads", ignore_errors=True)  # made by TFDS, always empty
    return str(Path(builder.data_dir).relative_to(folder))


def read(folder: Path, split: str) -> Iterator[str]:
    """The texts of a split in the order of the files, which is by a hash of their keys."""
    records = tfds.builder_from_directory(str(folder)).as_data_source(split)
    for start in range(0, len(records), _READ_AT_ONCE):
        for record in records.__getitems__(list(range(start, min(start + _READ_AT_ONCE, len(records))))):
            yield record["text"].decode("utf-8")
