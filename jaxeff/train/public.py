"""Public checkpoints where runs are: as the base of a run, to be evaluated, to become a run, and to be made of one.

They are named `hf:DIR`, a folder as Hugging Face's hub has them; see `jaxeff.interop.hf`.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxeff.core.errors import UserError
from jaxeff.core.files import refusals
from jaxeff.data import Published, TextData
from jaxeff.data.public_tokenizer import PublishedTokenizer
from jaxeff.train.experiment import Experiment
from jaxeff.train.progress import Silent
from jaxeff.train.rewrite import check_free, write_run
from jaxeff.train.trained import PUBLIC, Trained, load_trained, public_weights

TOKENIZER = "tokenizer"  # the folder of a run that keeps its tokenizer's files


def folder_of(name: str) -> Path | None:
    """The folder of a public checkpoint, None where the name is another one's."""
    return Path(name.removeprefix(PUBLIC)) if name.startswith(PUBLIC) else None


def onto(experiment: Experiment, base: str) -> Experiment:
    """The experiment on another base. On a public checkpoint it takes over the model and, for text, the tokenizer; how the model is
    computed stays.

    Raises UserError where there is no checkpoint that can be read.
    """
    folder = folder_of(base)
    if folder is None:
        return dataclasses.replace(experiment, base=base)
    model = dataclasses.replace(hf_model(folder), remat=experiment.model.remat, scan=experiment.model.scan)
    data = experiment.data
    if isinstance(data, TextData):
        data = dataclasses.replace(data, tokenizer=Published(str(folder)))
    return dataclasses.replace(experiment, base=base, model=model, data=data)


def load_public(name: str, experiment: Experiment | None = None, report: Silent | None = None) -> Trained:
    """A public checkpoint as a run of no step, to be evaluated on the data of an experiment, None: of the default one.

    Raises UserError where it cannot be read.
    """
    from jaxeff.interop import hf

    folder = folder_of(name)
    model, weights = hf.load(folder, jnp.float32)
    plain = Experiment(model, TextData()) if experiment is None else experiment
    data = dataclasses.replace(plain.data, tokenizer=Published(str(folder)))
    prepared = data.prepare(report=(report or Silent()).stage)
    chosen = Experiment(model, data, plain.objective, precision=plain.precision)
    return Trained(chosen, prepared, 0, weights)


def speaker(name: str):
    """(model, weights, tokenizer) of a public checkpoint. Raises UserError where it cannot be read."""
    from jaxeff.interop import hf

    folder = folder_of(name)
    tokenizer = Published(str(folder)).load()
    return *hf.load(folder, jnp.float32), tokenizer


def convert(source: str, target: str, dtype: str | None = None, report: Silent | None = None) -> str:
    """Writes a run as a public checkpoint, a public checkpoint as a run, or a public one anew; what was done, in a line.

    dtype: of the numbers of a public checkpoint that is written, None: as they are.

    Raises UserError where the source cannot be read, no public checkpoint has such a model, or the target holds something.
    """
    ours, theirs = folder_of(source), folder_of(target)
    if ours is None and theirs is None:
        raise UserError(f"neither {source} nor {target} is a public checkpoint: write {PUBLIC}DIR for one")
    if theirs is None:
        if dtype is not None:
            raise UserError("a run keeps float32: --dtype is for the public checkpoint that is written")
        return _to_run(source, target, report or Silent())
    return _to_public(source, theirs, dtype, report or Silent())


def _to_public(source: str, target: Path, dtype: str | None, report: Silent) -> str:
    from jaxeff.interop import hf

    folder = folder_of(source)
    if folder is not None:
        model, plain = hf.load(folder, dtype)
        like = folder
    else:
        run = load_trained(source, report)
        model, plain = run.experiment.model, run.experiment.weights.plan.merge(run.weights)
        like = _tokenizer_of(run)
        plain = plain if dtype is None else jax.tree.map(lambda x: x.astype(dtype), plain)
    hf.save(target, model, plain, like=like)
    if like is None:
        return f"written to {target}; without a tokenizer, as no public one has been used: {source} has its own"
    return f"written to {target}"


def _tokenizer_of(run: Trained) -> Path | None:
    tokenizer = run.prepared.tokenizer
    return tokenizer.folder if isinstance(tokenizer, PublishedTokenizer) else None


def _to_run(source: str, target: str, report: Silent) -> str:
    """Trained on nothing yet: a run of no steps on the default corpus."""
    check_free(target)
    folder, own = folder_of(source), Path(target) / TOKENIZER
    experiment = Experiment(hf_model(folder), TextData(tokenizer=Published(str(own))))
    with refusals(own):
        own.mkdir(parents=True, exist_ok=True)
        Published(str(folder)).load().save(own)
    prepared = experiment.data.prepare(report=report.stage)
    write_run(target, experiment, prepared, public_weights(folder, experiment.model))
    return f"written to {target}, a run of no steps: jaxeff generate --workdir {target}; jaxeff train CONFIG --base {target}"


def hf_model(folder: Path):
    """The model of a folder. Raises UserError where it cannot be read."""
    from jaxeff.interop import hf

    return hf.read_config(folder)[1]
