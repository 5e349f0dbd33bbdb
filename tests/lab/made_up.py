"""Results that no training gave, for tests of tables, plots and the report."""

import numpy as np

from jaxeff.lab.results import Decode, Results, Row

NAMES = ("mha", "mqa", "linear")


def decoded(c: int) -> Decode:
    """Rounds of 4 % less and 10 % more than the median."""
    first, further = 1e-5 * c, 4e-4 + 1e-7 * c
    return Decode(c, first, further, 1024 * c, (0.96 * first, 1.1 * first), (0.96 * further, 1.1 * further))


def made_up(names=NAMES, seeds=(0, 1, 2), costs=True, **more) -> Results:
    """Results of `names`; each model is 0.1 worse than the one before, plus an effect of the seed that all share."""
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(8, 40)) * 0.1
    steps = list(range(5, 205, 5))

    def row(i, name):
        curve = {
            s: (steps, [float(3 + 3 * np.exp(-t / 50) + 0.1 * i + batch[s, j]) for j, t in enumerate(steps)])
            for s in seeds
        }
        return Row(
            name=name,
            built=f"Mixer<{i}>(n_heads=4)",
            n_parameters=1_000_000 + i,
            varied=344 + 8 * i,
            best_lr=(3e-3, 1e-2)[i % 2],
            sweep={1e-3: 2.2, 3e-3: 2.1, 1e-2: 2.05 + 0.1 * ((i + 1) % 2)},
            test={s: 2.0 + 0.1 * i + 0.02 * s + 0.001 * ((i * s) % 3) for s in seeds},
            curves=curve,
            tokens_per_s=20e3 - 1e3 * i if costs else None,
            flops_per_token=8e6 - 1e5 * i if costs else None,
            decode=tuple(decoded(c) for c in (128, 512, 2048)) if costs else (),
            tokens_per_s_ends=(19e3 - 1e3 * i, 20.5e3 - 1e3 * i) if costs else None,
            memory_bytes=50 << 20 if costs else None,
            reproduce=f"jaxeff ablate configs/ablations/quickstart.py --only {name} --workdir runs/quickstart-{name}",
        )

    fields = {
        "name": "made-up",
        "description": "Nothing <was> trained.",
        "rows": tuple(row(i, name) for i, name in enumerate(names)),
        "baseline": "mha",
        "protocol": {
            "seeds": list(seeds),
            "lrs": [1e-3, 3e-3, 1e-2],
            "widen": 3,
            "sweep_steps": 50,
            "sweep_seed": 0,
            "steps": 200,
            "tolerance": 0.01,
        },
        "corpus": {"fingerprint": "ab" * 32, "documents": {"train": 90, "test": 10}},
        "machine": {"device": "cpu"},
        "versions": {"jax": "0"},
        "command": "jaxeff ablate configs/ablations/quickstart.py",
        "seconds": 90.0,
        "finished": "2025-03-01T10:20:30+00:00",
    }
    return Results(**fields | more)
