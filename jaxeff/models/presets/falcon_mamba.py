"""Falcon-Mamba (Zuo et al. 2024): the Mamba graph with norms of dt, b and c, and a head of its own."""

import functools

from jaxeff.models.presets.mamba import mamba

falcon_mamba = functools.partial(mamba, bcdt_eps=1e-6, tied=False)

PRESETS = {"falcon-mamba-7b": functools.partial(falcon_mamba, 65024, 4096, 64)}
