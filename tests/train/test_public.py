"""Public checkpoints on the command line: read, trained on, evaluated, talked with, written. Agreement with Transformers is in
tests/golden."""

import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.cli import main
from jaxeff.core.errors import UserError
from jaxeff.data import Published
from jaxeff.interop import hf
from jaxeff.models import LM, generate
from jaxeff.train.public import load_public, onto
from jaxeff.train.rewrite import write_run
from jaxeff.train.trained import load_trained
from tests.interop.checkpoint import checkpoint
from tests.train.tiny import CONFIG, experiment


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("public")
        patch.setenv("JAXEFF_CACHE", str(home / "cache"))
        checkpoint(home / "model")
        (home / "tiny.py").write_text(CONFIG)
        yield home


@pytest.fixture(scope="module")
def adapted(folder):
    """A run that trained an adapter on it."""
    words = [
        "--base",
        f"hf:{folder / 'model'}",
        "--workdir",
        str(folder / "adapted"),
        "--set",
        "transforms=[LoRA(rank=2)]",
    ]
    assert main(["train", str(folder / "tiny.py"), *words]) == 0
    return folder / "adapted"


def said(capsys, *words) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def refused(capsys, *words) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err


def test_generate(folder, capsys):
    name = f"hf:{folder / 'model'}"
    words = ("generate", "--model", name, "--max-tokens", 6, "--temperature", 0)
    alone = [said(capsys, *words, "--prompt", prompt) for prompt in ("the cat", "o")]
    both = said(capsys, *words, "--prompt", "the cat", "--prompt", "o")
    assert alone[0].startswith("the cat") and both == "".join(alone)
    model, params = hf.load(folder / "model")
    tokenizer = Published(str(folder / "model")).load()
    row = tokenizer.prompt("the cat")
    new = generate(model, params, np.asarray([row]), 6, eos=tokenizer.ends)[0].tolist()
    assert alone[0] == tokenizer.decode(row + new) + "\n"


def test_a_run_on_a_public_checkpoint(folder, adapted, capsys):
    run = load_trained(adapted)
    assert run.experiment.model == hf.load(folder / "model")[0] and run.step == 8
    assert run.experiment.data.tokenizer == Published(str(folder / "model"))
    base = jax.tree.leaves(hf.load(folder / "model")[1])
    merged = jax.tree.leaves(run.experiment.weights.plan.merge(run.weights))
    assert any(not np.array_equal(a, b) for a, b in zip(base, merged, strict=True))
    assert "at step 8: loss" in said(capsys, "eval", "--workdir", adapted)
    # It goes on in its own workdir, and nowhere on another model.
    again = ["train", folder / "tiny.py", "--base", f"hf:{folder / 'model'}", "--workdir", adapted]
    assert "trained 8 steps" in said(capsys, *again, "--set", "transforms=[LoRA(rank=2)]")


def test_a_base_that_is_another_model(folder, capsys, tmp_path):
    name = f"hf:{folder / 'model'}"
    train = ["train", folder / "tiny.py", "--workdir", tmp_path, "--set", f"base={name}"]
    assert "read text by another tokenizer" in refused(capsys, *train)
    e = onto(experiment(), name)
    other = dataclasses.replace(e, model=dataclasses.replace(e.model, norm=dataclasses.replace(e.model.norm, eps=1e-3)))
    with pytest.raises(UserError, match="its norm.eps is 1e-05, where it would be 0.001"):
        from jaxeff.train.loop import fit

        fit(other, tmp_path / "other")
    assert onto(experiment(), "runs/x").base == "runs/x"
    words = ["--set", "data.tokenizer=bytes"]
    err = refused(capsys, "train", folder / "tiny.py", "--base", name, "--workdir", tmp_path / "bytes", *words)
    assert "read text by another tokenizer" in err and "Published(FOLDER)" in err


def test_eval(folder, capsys):
    out = said(capsys, "eval", "--model", f"hf:{folder / 'model'}", "--config", folder / "tiny.py")
    assert out.splitlines()[-1].startswith("validation: loss ") and "bits per byte" in out
    run = load_public(f"hf:{folder / 'model'}", experiment())
    assert run.experiment.data.source == experiment().data.source


def test_convert(folder, adapted, capsys, tmp_path):
    # A run with its adapter merged, with the tokenizer it was read by.
    assert "written to" in said(capsys, "convert", adapted, f"hf:{tmp_path / 'out'}")
    run = load_trained(adapted)
    model, params = hf.load(tmp_path / "out")
    assert model == run.experiment.model
    jax.tree.map(np.testing.assert_array_equal, params, run.experiment.weights.plan.merge(run.weights))
    assert Published(str(tmp_path / "out")).load().identity == Published(str(folder / "model")).load().identity
    # A public checkpoint as a run of its own, which needs the folder no more.
    said(capsys, "convert", f"hf:{folder / 'model'}", tmp_path / "run")
    words = ["--prompt", "the cat", "--max-tokens", 6]
    ours = said(capsys, "generate", "--workdir", tmp_path / "run", *words)
    assert ours == said(capsys, "generate", "--model", f"hf:{folder / 'model'}", *words)
    # And anew, in other numbers.
    said(capsys, "convert", f"hf:{folder / 'model'}", f"hf:{tmp_path / 'half'}", "--dtype", "bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(hf.load(tmp_path / "half")[1])} == {jnp.bfloat16.dtype}


def test_conversions_that_cannot_be(folder, adapted, capsys, tmp_path):
    name = f"hf:{folder / 'model'}"
    assert "neither a nor b is a public checkpoint: write hf:DIR" in refused(capsys, "convert", "a", "b")
    assert "holds a run already" in refused(capsys, "convert", name, adapted)
    assert "holds something already" in refused(capsys, "convert", adapted, name)
    assert "--dtype is for the public checkpoint" in refused(
        capsys, "convert", name, tmp_path / "r", "--dtype", "float32"
    )
    assert "config.json is not there" in refused(capsys, "convert", f"hf:{tmp_path}/none", tmp_path / "r")
    assert "no training run" in refused(capsys, "convert", tmp_path / "none", f"hf:{tmp_path}/x")
    e = experiment("model.stages.0.pattern=mamba2")
    zeros = jax.tree.map(lambda spec: np.zeros(spec.shape, np.float32), e.specs)
    write_run(tmp_path / "mixed", e, e.data.prepare(), zeros)
    assert "no public checkpoint holds such a model" in refused(
        capsys, "convert", tmp_path / "mixed", f"hf:{tmp_path}/x"
    )
    assert not (tmp_path / "x").exists()


def test_chat(folder, capsys, monkeypatch):
    name = f"hf:{folder / 'model'}"
    monkeypatch.setattr("sys.stdin", io.StringIO("the cat\nthe dog\n\nnot said\n"))
    words = ["chat", "--model", name, "--system", "be brief", "--temperature", 0, "--max-tokens", 5]
    answers = said(capsys, *words).splitlines()
    model, params = hf.load(folder / "model")
    tokenizer = Published(str(folder / "model")).load()
    messages = [{"role": "system", "content": "be brief"}]
    for line, answer in zip(("the cat", "the dog"), answers, strict=True):
        messages.append({"role": "user", "content": line})
        new = generate(model, params, np.asarray([tokenizer.chat(messages)]), 5, eos=tokenizer.ends)[0].tolist()
        new = [token for token in new if token not in tokenizer.ends]
        assert answer == tokenizer.decode(new).rstrip("\ufffd")
        messages.append({"role": "assistant", "content": answer})


def test_chats_that_cannot_be(folder, capsys, tmp_path):
    assert "a public checkpoint is named hf:DIR" in refused(capsys, "chat", "--model", "runs/x")
    model, params = hf.load(folder / "model")
    hf.save(tmp_path / "mute", model, params, like=folder / "model")
    config = json.loads((tmp_path / "mute" / "tokenizer_config.json").read_text())
    (tmp_path / "mute" / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": None}))
    assert "has no chat template" in refused(capsys, "chat", "--model", f"hf:{tmp_path / 'mute'}")
    assert "neither tokenizer.json nor tokenizer.model" in refused(capsys, "generate", "--model", f"hf:{tmp_path}")
    assert isinstance(model, LM)


def test_export(folder, adapted, capsys, tmp_path):
    words = ["--prompt-length", 8, "--max-length", 16]
    assert "prefill.bin" in said(capsys, "export", "--workdir", adapted, "--out", tmp_path / "a", *words)
    said(capsys, "export", "--model", f"hf:{folder / 'model'}", "--out", tmp_path / "b", *words)
    for name in "ab":
        model = json.loads((tmp_path / name / "model.json").read_text())
        assert model == dict(batch=1, prompt=8, vocab_size=304, max_len=16, platforms=["cpu"], ids={"bos": 0, "eos": 1})
    assert "holds something already" in refused(capsys, "export", "--workdir", adapted, "--out", tmp_path / "a")
    words = ["--out", tmp_path / "c", "--platforms", "gpuu"]
    assert "no platform is called 'gpuu'" in refused(capsys, "export", "--workdir", adapted, *words)
