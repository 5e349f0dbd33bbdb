"""Products with weights: the forms made for the CPU against `jnp.einsum`. B batch, T time, D, F, H, C widths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxeff.core import matmul
from tests.closeness import assert_close

B, T, D, F, H, C = 2, 40, 12, 20, 3, 4
SIZES = dict(b=B, t=T, d=D, f=F, h=H, c=C, e=5)
EQUATIONS = ["btd,df->btf", "btf,fd->btd", "btd,dhc->bthc", "bthc,hcd->btd", "bd,df->bf", "btd,de->bte"]


def arrays(eqn, dtype=jnp.float32, rows=None):
    """(x, w, dy)."""
    terms, out = eqn.split("->")
    rng = np.random.default_rng(0)
    sizes = SIZES | ({"b": rows} if rows else {})
    return [jnp.asarray(rng.normal(size=[sizes[a] for a in term]), dtype) for term in (*terms.split(","), out)]


def with_gradients(f, x, w, dy):
    """{"y", "x", "w"}."""

    @jax.jit
    def run(x, w, dy):
        y, pull = jax.vjp(f, x, w)
        dx, dw = pull(dy)
        return dict(y=y, x=dx, w=dw)

    return run(x, w, dy)


@pytest.mark.parametrize("eqn", EQUATIONS)
@pytest.mark.parametrize("rows", [1, 80])
def test_is_einsum(eqn, rows):
    x, w, dy = arrays(eqn, rows=rows)
    actual = with_gradients(lambda x, w: matmul.einsum(eqn, x, w), x, w, dy)
    assert_close(actual, with_gradients(lambda x, w: jnp.einsum(eqn, x, w), x, w, dy), 1e-6, eqn)


@pytest.mark.parametrize("eqn", EQUATIONS)
def test_16_bits(eqn):
    """Sums are float32; operands and results are rounded once: about 0.3 %."""
    x, w, dy = arrays(eqn)
    small = [a.astype(jnp.bfloat16) for a in (x, w, dy)]
    expected = with_gradients(lambda x, w: jnp.einsum(eqn, x, w), *(a.astype(jnp.float32) for a in small))
    actual = with_gradients(lambda x, w: matmul.einsum(eqn, x, w), *small)
    assert all(a.dtype == jnp.bfloat16 for a in actual.values())
    assert_close(actual, expected, 4e-3, eqn)


def test_master_weights_get_a_float32_gradient():
    eqn = "btd,df->btf"
    x, w, dy = arrays(eqn)
    x, dy = x.astype(jnp.bfloat16), dy.astype(jnp.bfloat16)
    got = with_gradients(lambda x, w: matmul.einsum(eqn, x, w), x, w, dy)
    assert got["w"].dtype == jnp.float32 and got["y"].dtype == jnp.bfloat16
    assert_close(got["w"], jnp.einsum("btd,btf->df", x.astype(jnp.float32), dy.astype(jnp.float32)), 1e-6)


@pytest.mark.parametrize("eqn", ["btd,df->btf", "btf,fd->btd"])
def test_transforms_of_jax(eqn):
    """Forward mode, second derivatives, vmap, scan with its stacked residuals."""
    x, w, _ = arrays(eqn)
    f, g = (lambda x, w, e=e: jnp.sum(jnp.tanh(e(eqn, x, w))) for e in (matmul.einsum, jnp.einsum))
    assert_close(jax.jvp(f, (x, w), (x, w)), jax.jvp(g, (x, w), (x, w)), 1e-5)
    along = lambda f: jax.jvp(jax.grad(f, 1), (x, w), (x, w))[1]  # noqa: E731
    assert_close(along(f), along(g), 1e-5)
    many = jnp.stack([w, 2 * w])
    assert_close(jax.vmap(jax.grad(f, 1), (None, 0))(x, many), jax.vmap(jax.grad(g, 1), (None, 0))(x, many), 1e-5)
    total = lambda f: jax.grad(lambda ws: jax.lax.scan(lambda s, w: (s + f(x, w), None), 0.0, ws)[0])(many)  # noqa: E731
    assert_close(total(f), total(g), 1e-5)


@pytest.mark.parametrize(
    "eqn, n",
    [("btd,df->btf", 1), ("bthc,hcd->btd", 2), ("btd,dhc->bthc", 1), ("btd,fd->btf", None), ("btd,df->bft", None),
     ("bthc,hcd->bthd", None), ("bd,de->e", None), ("...d,df->...f", None), ("bhtd,hdf->bhtf", None), ("bt,df->btdf", None)],
)  # fmt: skip
def test_which_equations_are_products(eqn, n):
    assert matmul.inner(eqn) == n


def test_other_equations_are_einsum():
    x, w = arrays("btd,df->btf")[:2]
    assert_close(matmul.einsum("btd,df->fbt", x, w), jnp.einsum("btd,df->fbt", x, w), 1e-6)


@pytest.mark.shipped
def test_sharded_is_unsharded():
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    put = lambda a, *axes: jax.device_put(a, jax.NamedSharding(mesh, jax.P(*axes)))  # noqa: E731
    for eqn, wide in (("btd,df->btf", (None, "tensor")), ("btf,fd->btd", ("tensor", None))):
        for dtype in (jnp.float32, jnp.bfloat16):
            x, w, dy = arrays(eqn, dtype)
            f = lambda x, w, eqn=eqn: matmul.einsum(eqn, x, w)  # noqa: E731
            actual = with_gradients(f, put(x, "data"), put(w, *wide), put(dy, "data"))
            assert_close(actual, with_gradients(f, x, w, dy), 1e-6 if dtype == jnp.float32 else 4e-3, eqn)
