"""`jaxeff list`: every name of every registry once, with a line that says something."""

import pytest

from jaxeff.bench.registry import BENCHMARKS
from jaxeff.cli.catalogue import KINDS, entries, kinds, sentence
from jaxeff.core.spec import count
from jaxeff.mixers.registry import CHANNEL_MIXERS, MIXERS
from jaxeff.models.presets import PRESETS
from jaxeff.train.optim import OPTIMIZERS
from jaxeff.transforms.registry import TRANSFORMS
from tests.cli.workdirs import refused, said

REGISTRIES = {
    "mixers": MIXERS,
    "channel-mixers": CHANNEL_MIXERS,
    "optimizers": OPTIMIZERS,
    "transforms": TRANSFORMS,
    "presets": PRESETS,
    "benchmarks": BENCHMARKS,
}


def names(text: str) -> list[str]:
    """What stands at the beginning of lines."""
    return [line.split()[0] for line in text.splitlines() if line and not line.startswith(" ")]


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_name_stands_there_once(capsys, kind):
    shown = said(capsys, "list", kind)
    assert names(shown) == [*REGISTRIES[kind]]
    assert max(map(len, shown.splitlines())) <= 120


def test_a_mixer_that_is_added_is_listed(monkeypatch, capsys):
    monkeypatch.setitem(MIXERS, "new_one", MIXERS["mqa"])
    assert "new_one" in names(said(capsys, "list", "mixers"))


def test_things_without_a_registry_are_those_of_their_rooms():
    assert {"TextData", "Copy", "Recall", "StateTracking"} <= {*entries("data")}
    assert {"PythonDocs", "Text", "Grammar"} <= {*entries("sources")}
    assert {"SentencePiece", "Bytes", "Published"} <= {*entries("tokenizers")}
    assert "Causal" in entries("objectives") and not {"Objective", "Sum", "Score"} & {*entries("objectives")}


def test_nothing_is_of_two_kinds():
    of_config = [name for kind in KINDS if kind != "benchmarks" for name in entries(kind)]
    assert len(of_config) == len(set(of_config))


def test_everything_has_a_line_of_its_own():
    for kind in KINDS:
        found = entries(kind)
        assert all("\n" not in text and text == text.rstrip() for text in found.values())
        if kind != "optimizers":  # one without settings has nothing to say
            assert all(found.values()), kind


def test_presets_tell_their_parameters(capsys):
    line = next(line for line in said(capsys, "list", "presets").splitlines() if line.startswith("smollm2-135m "))
    assert f" {count(PRESETS['smollm2-135m']().specs()):,} parameters" in line


def test_without_a_kind_the_kinds_are_counted(capsys):
    counted = {words[0]: words[1] for line in said(capsys, "list").splitlines() if (words := line.split())}
    assert {kind: counted[kind] for kind in KINDS} == {kind: str(n) for kind, (n, _) in kinds().items()}
    assert all(counted[kind] == str(len(registry)) for kind, registry in REGISTRIES.items())


def test_an_unknown_kind_is_one_line_with_the_nearest(capsys):
    assert "no kind is called 'mixer'; did you mean 'mixers'" in refused(capsys, "list", "mixer")


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("One thing. Another.", "One thing."),
        ("As told (Graves et al. 2014). More.", "As told (Graves et al. 2014)."),
        ("A model of 1.0 B weights,\nin two lines.\n\nMore.", "A model of 1.0 B weights, in two lines."),
        ("Attention; sizes left None derive from `d_model`.", "Attention."),
        ("no full stop", "no full stop"),
        (None, ""),
    ],
)
def test_first_sentences(text, first):
    def thing():
        pass

    thing.__doc__ = text
    assert sentence(thing) == first
