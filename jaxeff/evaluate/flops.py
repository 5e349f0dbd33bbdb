"""What a program costs: FLOPs as traced, memory as compiled.

flops(step, state, batch)["total"]        counted in the traced program
memory(compiled)                          from the compiler's own analysis, None where it does not tell
"""

import math
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.extend import core as jex

# Primitives that move or relabel numbers without computing any.
FREE = frozenset(
    "reshape broadcast_in_dim transpose convert_element_type reduce_precision slice dynamic_slice dynamic_update_slice "
    "concatenate pad "
    "gather scatter squeeze expand_dims iota rev copy copy_p split stop_gradient bitcast_convert_type device_put "
    "sharding_constraint "
    "random_wrap random_unwrap random_seed random_fold_in random_bits threefry2x32 select_n select_and_gather_add mesh_cast "
    "optimization_barrier full_like create_token name pvary layout_constraint".split()
)
REDUCTIONS = ("reduce_", "arg", "cum")


def flops(function: Callable, *args, **kwargs) -> dict[str, float]:
    """Floating-point operations of `function(*args)`, counted operation by operation in the program that JAX traces.

    Returns {"total", "matmul", "uncounted"}: a matrix product counts 2 per multiply-add, any other operation 1 per element, the
    body of a scan once per turn, a conditional its dearest branch. `uncounted` is the number of loops whose length depends on data
    (counted as one turn) and of opaque kernels (counted as nothing). XLA's `cost_analysis` agrees where there are no loops; it
    counts the body of a loop once.
    args: arrays or `jax.ShapeDtypeStruct`s; nothing is computed.
    """
    closed = jax.make_jaxpr(function)(*args, **kwargs)
    matmul, other, uncounted = map(float, _count(closed.jaxpr))
    return {"total": matmul + other, "matmul": matmul, "uncounted": uncounted}


def _size(var) -> int:
    return math.prod(getattr(var.aval, "shape", ()))


def _inner(params: Mapping) -> list:
    """The jaxprs among an equation's parameters."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, jex.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, jex.Jaxpr):
                found.append(item)
    return found


def _count(jaxpr) -> np.ndarray:
    """[matmul, other, uncounted] of a jaxpr."""
    total = np.zeros(3)
    for eqn in jaxpr.eqns:
        name, inner = eqn.primitive.name, _inner(eqn.params)
        if name == "scan":
            total += eqn.params["length"] * _count(inner[0])
        elif name == "while":
            total += _count(eqn.params["body_jaxpr"].jaxpr) + [0, 0, 1]
        elif name == "cond":
            total += max(map(_count, inner), key=lambda c: c[0] + c[1])
        elif name == "pallas_call":
            total += _kernel(eqn, inner[0])
        elif name == "shard_map":
            cut = (eqn.params["mesh"].shape[axis] for axis in eqn.params["manual_axes"])
            total += math.prod(cut) * _count(inner[0])
        elif name.startswith(("scatter", "custom_jvp", "custom_vjp")) or not inner:
            total += _count(inner[0]) if inner and name.startswith("custom") else _plain(eqn, name)
        else:
            total += sum(map(_count, inner))
    return total


def _plain(eqn, name: str) -> np.ndarray:
    out = eqn.outvars[0]
    if name == "dot_general":
        (contract, _), _ = eqn.params["dimension_numbers"]
        return np.array([2.0 * _size(out) * math.prod(eqn.invars[0].aval.shape[i] for i in contract), 0, 0])
    if name == "ragged_dot_general":
        return np.array([_ragged(eqn), 0, 0])
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        per_output = math.prod(kernel) // kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
        return np.array([2.0 * _size(out) * per_output, 0, 0])
    if name in FREE:
        return np.zeros(3)
    if name.startswith("scatter"):
        return np.array([0, float(_size(eqn.invars[-1])), 0])
    if name.startswith(REDUCTIONS):
        return np.array([0, float(_size(eqn.invars[0])), 0])
    opaque = "call" in name or "dot_product" in name or name.startswith("splash")
    return np.array([0, 0, 1]) if opaque else np.array([0, float(_size(out)), 0])


def _ragged(eqn) -> float:
    """Every row is multiplied with the weight of its own group. Where rows are summed over, the result has an axis of groups."""
    numbers, lhs = eqn.params["ragged_dot_dimension_numbers"], eqn.invars[0].aval.shape
    (contract, _), _ = numbers.dot_dimension_numbers
    groups = eqn.invars[2].aval.shape[-1] if set(numbers.lhs_ragged_dimensions) <= set(contract) else 1
    return 2.0 * _size(eqn.outvars[0]) / groups * math.prod(lhs[i] for i in contract)


def _kernel(eqn, body) -> np.ndarray:
    estimate = eqn.params.get("cost_estimate")
    if estimate is not None:
        return np.array([float(estimate.flops), 0, 0])
    grid = [n if isinstance(n, int) else 1 for n in eqn.params["grid_mapping"].grid]
    return math.prod(grid) * _count(body)


def memory(compiled) -> dict[str, int] | None:
    """Bytes of a compiled program {"temporary", "arguments", "outputs", "aliased"}; None where the backend does not tell.

    Temporary is what it needs beside its arguments and outputs; aliased outputs lie in donated arguments.
    """
    try:
        found = compiled.memory_analysis()
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        return None
    if found is None:
        return None
    names = {"temporary": "temp", "arguments": "argument", "outputs": "output", "aliased": "alias"}
    return {ours: int(getattr(found, f"{theirs}_size_in_bytes")) for ours, theirs in names.items()}
