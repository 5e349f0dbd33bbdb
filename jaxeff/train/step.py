"""One optimizer step, jitted with explicit shardings and donation. B batch, T time, A micro-batches.

The compiled step is a function of (experiment minus learning rate, seed, number of steps): these three are values in the
state. `make_step` returns the same functions for two experiments that differ in nothing else.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jax.sharding import NamedSharding, PartitionSpec

from jaxeff.core.errors import UserError
from jaxeff.core.sharding import batch_sharding, shardings
from jaxeff.core.spec import abstract, init
from jaxeff.core.target import compiler_options
from jaxeff.core.tree import map_with_path
from jaxeff.mixers.base import Ctx
from jaxeff.train.experiment import Experiment
from jaxeff.train.optim import Optim, in_backward, optimizer, schedule
from jaxeff.train.state import State, init_state, state_shardings
from jaxeff.train.weights import Weights


class Step(NamedTuple):
    """init(seed, lr, steps, base) -> state, base the plain model's weights, None for initial ones; begin(trained, frozen, seed, lr,
    steps) -> state, from all weights as they are; step(state, batch) -> (state, metrics), state donated. abstract: the state's
    shapes with their shardings, which is what a checkpoint is restored into. mesh: where they live."""

    init: Callable[..., State]
    begin: Callable[..., State]
    step: Callable[[State, Any], tuple[State, dict[str, jax.Array]]]
    abstract: State
    mesh: Any


def make_step(experiment: Experiment, mesh=None) -> Step:
    """The jitted functions of an experiment on `mesh` (by default its own).

    Raises UserError when the batch is not divisible by the mesh's data axes times the accumulation.
    """
    mesh = experiment.mesh.make() if mesh is None else mesh
    check_batch(experiment, mesh)
    return compiled(experiment, mesh)


def compiled(experiment: Experiment, mesh) -> Step:
    """`make_step` without the check of the batch: for those who only want the shapes of the state on another mesh."""
    optim = dataclasses.replace(experiment.optim, lr=0.0)
    train = experiment.train
    return _make_step(experiment.weights, experiment.objective, optim, train.accumulate, experiment.policy, mesh)


def start(experiment: Experiment, step: Step, base=None) -> State:
    """The experiment's initial state; base: the plain model's weights, given away, None for initial values."""
    lr, steps, seed = experiment.optim.lr, experiment.train.steps, experiment.seed
    return step.init(jnp.uint32(seed), jnp.float32(lr), jnp.int32(steps), base)


def check_batch(experiment: Experiment, mesh):
    """Raises UserError when a micro-batch cannot be spread evenly over the mesh and the processes."""
    batch, accumulate = experiment.data.batch_size, experiment.train.accumulate
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch % (accumulate * shards):
        raise UserError(
            f"data.batch_size={batch} is not divisible by train.accumulate={accumulate} x mesh data={mesh.shape['data']}"
            f" x fsdp={mesh.shape['fsdp']}; the nearest that is: {_nearest_multiple(batch, accumulate * shards)}"
        )
    devices = collections.Counter(device.process_index for device in mesh.devices.flat)
    if len(devices) < jax.process_count() or len(set(devices.values())) > 1:
        raise UserError(
            f"a mesh of {mesh.size} device(s) takes {', '.join(f'{n} of process {i}' for i, n in sorted(devices.items()))}, and"
            f" needs as many of each of {jax.process_count()} processes: set mesh.data={jax.device_count()} for all of them"
        )


def _nearest_multiple(n: int, k: int) -> int:
    return max(k, round(n / k) * k)


def put(batch, mesh):
    """A process's rows of a batch as global arrays, rows spread over the data axes."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    _, parts = share(mesh)
    with jax.transfer_guard_host_to_device("allow"):  # asked for here, though not by the name of device_put
        return {
            name: jax.make_array_from_process_local_data(sharding, x, (x.shape[0] * parts, *x.shape[1:]))
            for name, x in batch.items()
        }


def share(mesh) -> tuple[int, int]:
    """(i, n): of each batch this process reads every n-th row from row i on.

    All rows where processes share the rows of the mesh, because they hold parts of one model.
    """
    shards = batch_sharding(mesh).devices_indices_map((mesh.shape["data"] * mesh.shape["fsdp"],))
    owners: dict[int, set[int]] = {}
    for device, (rows,) in shards.items():
        owners.setdefault(rows.start or 0, set()).add(device.process_index)
    alone = all(len(processes) == 1 for processes in owners.values())
    return (jax.process_index(), jax.process_count()) if alone else (0, 1)


@functools.lru_cache(maxsize=32)
def _make_step(weights: Weights, objective, optim: Optim, accumulate: int, policy, mesh) -> Step:
    model, specs = weights.model, weights.specs
    trained, share = weights.split(specs)[0], schedule(optim)
    within = in_backward(optim, trained, model.stack.looped)
    tx = within or optimizer(optim, trained)
    penalty = weights.plan.penalty
    rates = map_with_path(lambda path, _: weights.plan.rate(path), trained)
    ctx = Ctx(policy=policy, mesh=mesh if mesh.size > 1 else None)
    dtype = jnp.dtype(policy.param)

    def begin(params, frozen, seed, lr, steps):
        scaled = policy.compute == "float16"
        kept = {"memory": weights.plan.memory(params), "seed": seed, "lr": lr, "steps": steps}
        return init_state(params, frozen, tx, ema=optim.ema is not None, scaled=scaled, **kept)

    def fresh(plain, seed, lr, steps):
        return begin(*weights.lift(plain, jax.random.key(seed)), seed, lr, steps)

    def gradients(params, frozen, scale, batch, key):
        """(loss, gradients, sums, new loss scale)."""

        def f(params):
            whole = weights.whole(params, frozen, key)
            sums = objective.sums(model, whole, batch, dataclasses.replace(ctx, key=key))
            loss = objective.loss(sums)
            return (loss if penalty is None else loss + penalty(whole)), sums

        if scale is None:
            (loss, sums), grads = jax.value_and_grad(f, has_aux=True)(params)
        else:
            scale, _, (loss, sums), grads = scale.value_and_grad(f, has_aux=True)(params)
        return loss, jax.tree.map(lambda g: g.astype(policy.reduce), grads), sums, scale

    def accumulated(params, frozen, scale, batch, key):
        """`gradients` of the whole batch, in micro-batches weighted by their numbers of targets."""
        parts = jax.tree.map(functools.partial(_micro, n=accumulate, ctx=ctx), batch)

        def add(carry, part_i):
            loss, grads, scale = carry
            part, i = part_i
            loss_i, grads_i, sums_i, scale = gradients(params, frozen, scale, part, jax.random.fold_in(key, i))
            n_i = sums_i["loss"].weight
            grads = jax.tree.map(lambda g, gi: g + n_i.astype(g.dtype) * gi, grads, grads_i)
            return (loss + n_i * loss_i, grads, scale), sums_i

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, policy.reduce), params)
        start = (jnp.float32(0), zeros, scale)
        (loss, grads, scale), sums = jax.lax.scan(add, start, (parts, jnp.arange(accumulate)))
        sums = jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)
        total = jnp.maximum(sums["loss"].weight, 1.0)
        return loss / total, jax.tree.map(lambda g: g / total.astype(g.dtype), grads), sums, scale

    def descended(state: State, batch, lr):
        """(loss, norm of the gradients, sums, new loss scale, whether all is finite, what has changed)."""
        compute = gradients if accumulate == 1 else accumulated
        loss, grads, sums, scale = compute(state.params, state.frozen, state.scale, batch, state.key)
        grad_norm = optax.tree.norm(grads).astype(jnp.float32)
        updates, opt = tx.update(grads, state.opt, state.params)
        params = jax.tree.map(
            lambda p, u, r: p - (r * lr).astype(p.dtype) * u.astype(p.dtype), state.params, updates, rates
        )
        params, memory = weights.plan.after(params, grads, state.memory, state.step + 1, state.steps)
        # A step with a non-finite loss or gradient changes nothing but the counters.
        ok = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        new, old = (params, opt, memory), (state.params, state.opt, state.memory)
        new = jax.tree.map(lambda new, old: jnp.where(ok, new, old), new, old)
        return loss, grad_norm, sums, scale, ok, new

    def descended_within(state: State, batch, lr):
        """`descended` by an optimizer that is a part of the backward pass."""

        def f(params, descent):
            sums = objective.sums(model, params, batch, dataclasses.replace(ctx, key=state.key, descent=descent))
            return objective.loss(sums), sums

        loss, sums, params, opt, grad_norm, ok = within.update(f, state.params, state.opt, lr)
        return loss, grad_norm, sums, None, ok, (params, opt, state.memory)

    def step(state: State, batch):
        lr = state.lr * share(state.step + 1, state.steps)
        descend = descended if within is None else descended_within
        loss, grad_norm, sums, scale, ok, (params, opt, memory) = descend(state, batch, lr)
        average = None if state.ema is None else _average(optim.ema, state, params, ok)
        failed = (~ok).astype(jnp.int32)
        new = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            opt=opt,
            ema=average,
            scale=scale,
            skipped=state.skipped + failed,
            bad=(state.bad + 1) * failed,
            memory=memory,
        )
        metrics = {"loss": loss, "grad_norm": grad_norm, "lr": lr, "n_targets": sums["loss"].weight}
        told = {path: sum.mean for path, sum in sums.items() if "/" in path}
        return new, metrics | {"skipped": new.skipped, "bad": new.bad} | told

    scalars = (
        jax.ShapeDtypeStruct((), jnp.uint32),
        jax.ShapeDtypeStruct((), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    plain = model.specs()
    shapes = jax.eval_shape(begin, *weights.split(abstract(specs, dtype)), *scalars)
    laid = state_shardings(shapes, specs, mesh)
    target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, laid)
    replicated = NamedSharding(mesh, PartitionSpec())
    # A quantized weight has no room for the plain one's buffer: only then is it not given away.
    rest = jax.jit(fresh, out_shardings=laid, donate_argnums=() if weights.transforms else 0)
    begun = jax.jit(begin, out_shardings=laid, donate_argnums=() if mesh.size > 1 else (0, 1))

    def initial(seed, lr, steps, base=None):
        if base is None:
            # Parameters apart from the rest: each declaration is compiled once for all models that share it.
            base = init(plain, jax.random.key(seed), dtype, shardings(plain, mesh))
        if weights.transforms and jax.process_count() == 1:
            return begun(*weights.lift(base, jax.random.key(seed)), seed, lr, steps)
        return rest(base, seed, lr, steps)

    return Step(
        init=initial,
        begin=begun,
        step=jax.jit(
            step,
            in_shardings=(laid, batch_sharding(mesh)),
            out_shardings=(laid, replicated),
            donate_argnums=0,
            compiler_options=compiler_options(mesh),
        ),  # fmt: skip
        abstract=target,
        mesh=mesh,
    )


def _micro(x: jax.Array, n: int, ctx: Ctx) -> jax.Array:
    """[B, ...] -> [A, B / A, ...]. Row j goes to micro-batch j mod A, so that each device keeps its own rows."""
    x = rearrange(x, "(b a) ... -> a b ...", a=n)
    return ctx.constrain(x, None, "batch", *(None,) * (x.ndim - 2))


def _average(decay: float, state: State, params, ok):
    # The average follows closely at first: its decay rises to `decay` as (1 + t) / (10 + t).
    t = state.step.astype(jnp.float32)
    d = jnp.minimum(decay, (1 + t) / (10 + t))
    return jax.tree.map(lambda a, p: jnp.where(ok, a + (1 - d).astype(a.dtype) * (p - a), a), state.ema, params)
