"""Several MLPs of which every token uses a few. B batch, T time, D model, F hidden, X experts, K experts of a token, C capacity of
an expert, R slots.

    s = softmax(W_r x)  or  sigmoid(W_r x)        K = the top_k experts of largest s
    y = sum_{i in K} g_i MLP_i(x) + MLP_shared(x)        g = s, or s / sum_{j in K} s_j

Shazeer et al. 2017, "Outrageously large neural networks"; softmax, then the largest: Fedus et al. 2021, "Switch Transformers";
weights that sum to one: Jiang et al. 2024, "Mixtral of experts"; shared experts and sigmoids: DeepSeek-AI 2024, "DeepSeek-V3".

What it adds to the objective keeps experts in use, over the tokens that are no padding:

    balance X sum_i f_i P_i + z_loss mean(logsumexp(W_r x)^2)

f_i is the share of choices that fall on expert i, P_i the mean of s_i / sum_j s_j (Fedus et al. 2021, equations 4 to 6; Zoph et
al. 2022, "ST-MoE", equation 5).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxeff.core.errors import lookup
from jaxeff.core.sharding import pspec
from jaxeff.core.spec import Spec, stack
from jaxeff.core.weight import dense, einsum, is_weight
from jaxeff.mixers.base import Ctx, Out, at_least_one, width
from jaxeff.mixers.mlp import ACTIVATIONS, MLP, activated
from jaxeff.mixers.state import check_state
from jaxeff.ops.experts import grouped, layout, ranked

SCORES = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}


@dataclasses.dataclass(frozen=True)
class MoE:
    """A mixture of experts: each token goes through the `top_k` of `n_experts` MLPs that a router scores highest.

    `d_hidden` is that of one expert; None derives that of `MLP` divided by `top_k + n_shared`, rounded up to a multiple of 8: the
    experts that a token uses are then as large as a dense MLP. n_shared: experts that every token uses, held as one MLP.
    normalise: the weights of a token's experts sum to 1; with `top_k` 1 they are 1, and the output teaches the router nothing.
    balance, z_loss: weights of the losses above.

    `capacity` None drops no token, on one device or on many that hold all experts each. A number spreads the experts over the
    mesh axes of the rule `expert`: each takes capacity * top_k * T / n_experts tokens of a row, rounded up, and those after them
    go on without it, which no earlier token notices. A decode step drops none.

    Cost per token: 2 x (the router's, top_k + n_shared experts' parameters) FLOPs in the forward pass, with a capacity as many
    experts as it has room for; the same in decoding; no state. It tells `loss`; `load` [X], the share of choices of each expert;
    with a capacity `dropped`, the share of choices that found no room.

    Parameters: d_model * n_experts + (n_experts + n_shared) * (3 if gated else 2) * d_model * hidden
    """

    d_model: int | None = None
    d_hidden: int | None = None
    n_experts: int = 8
    top_k: int = 2
    activation: str = "silu"
    gated: bool = True
    n_shared: int = 0
    score: str = "softmax"
    normalise: bool = True
    balance: float = 0.01
    z_loss: float = 0.0
    capacity: float | None = None

    def __post_init__(self):
        lookup(ACTIVATIONS, self.activation, "activation")
        lookup(SCORES, self.score, "score of experts")
        at_least_one(self, "d_model", "d_hidden", "n_experts", "top_k")
        if self.top_k > self.n_experts:
            raise ValueError(f"MoE.top_k must be at most n_experts={self.n_experts}, found {self.top_k}")
        for name in ("n_shared", "balance", "z_loss"):
            if getattr(self, name) < 0:
                raise ValueError(f"MoE.{name} must be at least 0, found {getattr(self, name)}")
        if self.capacity is not None and not 0 < self.capacity < math.inf:
            raise ValueError(f"MoE.capacity must be None or a finite number above 0, found {self.capacity}")

    @property
    def hidden(self) -> int:
        """F of one expert, given or derived."""
        if self.d_hidden is not None:
            return self.d_hidden
        used = self.top_k + self.n_shared
        return -(-(8 if self.gated else 12) * width(self) // (3 * used) // 8) * 8

    def mlp(self, n: int = 1) -> MLP:
        """One expert, or `n` as one."""
        return MLP(width(self), n * self.hidden, self.activation, self.gated)

    def specs(self):
        """`router`; `up`, `down`, and `gate` where gated, of all experts; `shared`, an MLP's, where there is one."""
        # Every device scores all experts: the router is not spread with them.
        specs = {"router": Spec((width(self), self.n_experts), ("embed", None))}
        specs |= stack(self.mlp().specs(), self.n_experts, axis="expert")
        return specs | ({"shared": self.mlp(self.n_shared).specs()} if self.n_shared else {})

    def init_state(self, batch: int, max_len: int, dtype):
        """Nothing is remembered."""
        return ()

    def apply(self, params, x_BTD: jax.Array, state=None, *, ctx: Ctx = Ctx()) -> Out:
        """See `mixers.base.Out`; there is no state."""
        check_state(self, state, x_BTD)
        valid_BT = None if ctx.segment_ids is None else ctx.segment_ids != 0
        weight_BTK, expert_BTK, aux = self.route(params, x_BTD, valid_BT)
        experts = {name: params[name] for name in self.mlp().specs()}
        if self.capacity is None:
            y_BTD = self._dropless(experts, x_BTD, weight_BTK, expert_BTK, ctx)
        else:
            y_BTD, aux["dropped"] = self._within_capacity(experts, x_BTD, weight_BTK, expert_BTK, valid_BT, ctx)
        if self.n_shared:
            y_BTD = y_BTD + self.mlp(self.n_shared).apply(params["shared"], x_BTD, ctx=ctx).y
        return Out(y_BTD, state, aux=aux)

    def route(self, params, x_BTD: jax.Array, valid_BT: jax.Array | None = None):
        """(weights of each token's experts, float32 [B, T, K]; which they are, int32 [B, T, K]; `loss` and `load`)."""
        logit_BTX = einsum("btd,dx->btx", x_BTD.astype(jnp.float32), params["router"])
        s_BTX = SCORES[self.score](logit_BTX)
        expert_BTK = _largest(jax.lax.stop_gradient(s_BTX), self.top_k)
        chosen_BTKX = jax.nn.one_hot(expert_BTK, self.n_experts, dtype=jnp.float32)
        weight_BTK = jnp.sum(chosen_BTKX * s_BTX[:, :, None], axis=-1)
        if self.normalise:
            weight_BTK = weight_BTK / _total(weight_BTK)

        load_X = _mean(jnp.sum(chosen_BTKX, axis=2), valid_BT) / self.top_k
        loss = self.balance * self.n_experts * jnp.sum(load_X * _mean(s_BTX / _total(s_BTX), valid_BT))
        if self.z_loss:
            loss = loss + self.z_loss * _mean(jax.nn.logsumexp(logit_BTX, axis=-1) ** 2, valid_BT)
        return weight_BTK, expert_BTK, {"loss": loss, "load": load_X}

    def _experts(self, product, x):
        """The MLP of experts on rows that stand beside their weights; `product(name, rows)` is one with a weight."""

        # As in `MLP`: the activation is computed again in the backward pass.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def down(gate, up):
            return product("down", activated(self.activation, gate, up))

        up = product("up", x)
        return down(product("gate", x), up) if self.gated else down(up, None)

    def _dropless(self, experts, x_BTD, weight_BTK, expert_BTK, ctx: Ctx):
        """Each device sorts the tokens that it has."""
        experts = {name: dense(w, x_BTD.dtype) if is_weight(w) else w for name, w in experts.items()}

        def own(experts, x_BTD, weight_BTK, expert_BTK):
            x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
            where = layout(expert_BTK.reshape(-1), self.n_experts)
            product = lambda name, x_RD: grouped(x_RD, experts[name], where)  # noqa: E731
            y_RD = self._experts(product, x_ND[where.row // self.top_k])
            y_BTKD = y_RD[where.slot].reshape(*weight_BTK.shape, -1)
            return jnp.einsum("btk,btkd->btd", weight_BTK, y_BTKD.astype(jnp.float32)).astype(x_BTD.dtype)

        whole = PartitionSpec() if ctx.mesh is None else pspec(("batch", "time"), x_BTD.shape[:2], ctx.mesh, ctx.rules)
        axes = {name for entry in whole for name in ((entry,) if isinstance(entry, str) else entry or ())}
        if axes:
            of_experts = {name: PartitionSpec() for name in experts}
            own = jax.shard_map(
                own,
                mesh=ctx.mesh,
                in_specs=(of_experts, whole, whole, whole),
                out_specs=whole,
                axis_names=axes,
                check_vma=False,
            )
        return own(experts, x_BTD, weight_BTK, expert_BTK)

    def _within_capacity(self, experts, x_BTD, weight_BTK, expert_BTK, valid_BT, ctx: Ctx):
        """(y_BTD, the share of choices that were dropped). Each expert has C slots in every row; each device fills its experts'."""
        B, T, K = expert_BTK.shape
        X, C = self.n_experts, min(T, math.ceil(self.capacity * K * T / self.n_experts))
        valid_BT = jnp.ones((B, T), bool) if valid_BT is None else valid_BT
        expert_BTK = jnp.where(valid_BT[..., None], expert_BTK, X)  # of none: takes no room
        slots = functools.partial(_slots, n_experts=X, capacity=C)
        token_BXC, weight_BXC = jax.vmap(slots)(expert_BTK, weight_BTK)

        x_BXCD = jax.vmap(lambda x_TD, token_XC: x_TD.at[token_XC].get(mode="fill", fill_value=0))(x_BTD, token_BXC)
        # Where experts and rows are spread over the same devices, rows go to the experts' devices here, and come back below.
        rules = dict(ctx.rules)
        rows = ctx.rules.replace(batch=tuple(axis for axis in rules["batch"] if axis not in rules["expert"]))
        spread = dataclasses.replace(ctx, rules=rows)
        x_BXCD = spread.constrain(x_BXCD, "batch", "expert", None, None)
        equations = dict.fromkeys(experts, "bxcd,xdf->bxcf") | {"down": "bxcf,xfd->bxcd"}
        y_BXCD = self._experts(lambda name, h: einsum(equations[name], h, experts[name]), x_BXCD)
        y_BXCD = spread.constrain(y_BXCD.astype(jnp.float32) * weight_BXC[..., None], "batch", "expert", None, None)

        add = lambda token_XC, y_XCD: jnp.zeros((T, y_XCD.shape[-1])).at[token_XC].add(y_XCD, mode="drop")  # noqa: E731
        y_BTD = jax.vmap(add)(token_BXC, y_BXCD).astype(x_BTD.dtype)
        wanted, given = K * jnp.sum(valid_BT, dtype=jnp.float32), jnp.sum(token_BXC < T, dtype=jnp.float32)
        return y_BTD, (wanted - given) / jnp.maximum(wanted, 1)


def moe_reference(layer: MoE, params, x_BTD: jax.Array) -> jax.Array:
    """y_BTD of a layer without capacity: every expert on every token, and most of it multiplied by zero."""
    weight_BTK, expert_BTK, _ = layer.route(params, x_BTD)
    weight_BTX = jnp.sum(jax.nn.one_hot(expert_BTK, layer.n_experts) * weight_BTK[..., None], axis=2)
    expert = lambda params: layer.mlp().apply(params, x_BTD).y.astype(jnp.float32)  # noqa: E731
    y_XBTD = jax.vmap(expert)({name: dense(params[name], x_BTD.dtype) for name in layer.mlp().specs()})
    y_BTD = jnp.einsum("btx,xbtd->btd", weight_BTX, y_XBTD).astype(x_BTD.dtype)
    return y_BTD + layer.mlp(layer.n_shared).apply(params["shared"], x_BTD).y if layer.n_shared else y_BTD


def _slots(expert_TK, weight_TK, *, n_experts: int, capacity: int):
    """(the token in each slot, int32 [X, C], T for an empty one; its weight). Those that come first have room."""
    T, K = expert_TK.shape
    expert_A = expert_TK.reshape(-1)
    rank_A, _ = ranked(expert_A, n_experts + 1)
    token_A = jnp.arange(T * K, dtype=jnp.int32) // K
    place = (expert_A, rank_A)  # outside of the table where it has no room
    token_XC = jnp.full((n_experts, capacity), T, jnp.int32).at[place].set(token_A, mode="drop", unique_indices=True)
    weight_XC = jnp.zeros((n_experts, capacity)).at[place].set(weight_TK.reshape(-1), mode="drop", unique_indices=True)
    return token_XC, weight_XC


def _largest(s_BTX, K: int):
    """Where the K largest are, the first of equal ones: `jax.lax.top_k`, which would gather the scores of all devices."""
    found, experts = [], jnp.arange(s_BTX.shape[-1], dtype=jnp.int32)[None, None]
    for _ in range(K):
        found.append(jnp.argmax(s_BTX, axis=-1).astype(jnp.int32))
        s_BTX = jnp.where(experts == found[-1][..., None], -jnp.inf, s_BTX)
    return jnp.stack(found, axis=-1)


def _total(x):
    return jnp.maximum(jnp.sum(x, axis=-1, keepdims=True), 1e-20)


def _mean(x_BT, valid_BT):
    """Over the tokens that are no padding, 0 where there are none."""
    if valid_BT is None:
        return jnp.mean(x_BT, axis=(0, 1))
    kept_BT = valid_BT.astype(x_BT.dtype)
    total = jnp.einsum("bt,bt...->...", kept_BT, x_BT)
    return total / jnp.maximum(jnp.sum(kept_BT), 1)
