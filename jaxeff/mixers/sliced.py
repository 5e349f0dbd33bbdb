"""A mixer on texts that are cut into slices over the mesh axis `sequence`. B batch, T time, D model.

Each device holds its slice of every text. `jax.shard_map` is opened once, around the mixer; what looks back asks `core.sequence`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxeff.core import sequence
from jaxeff.mixers.base import Ctx, Out

SLICE = PartitionSpec(None, sequence.AXIS)


def apply_sliced(mixer, params, x_BTD: jax.Array, state=None, ctx: Ctx = Ctx()) -> Out:
    """`mixer.apply`, each device on its own slice where ctx.mesh has several along `sequence`, they divide T, and the mixer looks
    back. Values shared by layers that are [B, T, ...] are cut likewise; a state is the same on all of them."""
    slices = 1 if ctx.mesh is None else ctx.mesh.shape[sequence.AXIS]
    T = x_BTD.shape[1]
    if slices == 1 or T % slices or sequence.sliced() or _forgets(mixer):
        return mixer.apply(params, x_BTD, state, ctx=ctx)

    def cut(tree):
        timed = lambda leaf: leaf.ndim > 1 and leaf.shape[1] == T  # noqa: E731
        return jax.tree.map(lambda leaf: SLICE if timed(leaf) else PartitionSpec(), tree)

    def own(params, x_BTD, state, ctx):
        if ctx.key is not None:
            ctx = dataclasses.replace(ctx, key=jax.random.fold_in(ctx.key, sequence.number()))
        return mixer.apply(params, x_BTD, state, ctx=ctx)

    whole = jax.eval_shape(lambda *arguments: mixer.apply(*arguments[:3], ctx=arguments[3]), params, x_BTD, state, ctx)
    everywhere = jax.tree.map(lambda leaf: PartitionSpec(), (params, state))
    return jax.shard_map(
        own,
        mesh=ctx.mesh,
        in_specs=(everywhere[0], SLICE, everywhere[1], cut(ctx)),
        out_specs=Out(
            SLICE, everywhere[1], cut(dict(whole.shared)), jax.tree.map(lambda leaf: PartitionSpec(), dict(whole.aux))
        ),
        axis_names={sequence.AXIS},
        check_vma=False,
    )(params, x_BTD, state, ctx)


def _forgets(mixer) -> bool:
    """Whether it treats every token by itself."""
    try:
        return not jax.tree.leaves(jax.eval_shape(lambda: mixer.init_state(1, 1, jnp.float32)))
    except ValueError:  # it looks ahead, too
        return False
