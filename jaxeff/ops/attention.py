"""Placeholder until the block form lands: the reference only."""

import jax
import jax.numpy as jnp


def attention_reference(q_BTHC, k_BSKC, v_BSKE, *, causal=True, window=None, scale=None, softcap=None, segment_ids_BT=None,
                        kv_segment_ids_BS=None, positions_BT=None, kv_positions_BS=None, impl=None):
    b, t, h, c = q_BTHC.shape
    s, k = k_BSKC.shape[1:3]
    tp = jnp.arange(t)[None] if positions_BT is None else positions_BT
    sp = jnp.arange(s)[None] if kv_positions_BS is None else kv_positions_BS
    q = q_BTHC.reshape(b, t, k, h // k, c).astype(jnp.float32) * (c**-0.5 if scale is None else scale)
    x = jnp.einsum("btkgc,bskc->bkgts", q, k_BSKC.astype(jnp.float32))
    if softcap is not None:
        x = softcap * jnp.tanh(x / softcap)
    d = tp[:, :, None] - sp[:, None, :]
    m = (sp >= 0)[:, None, :] & jnp.ones_like(d, bool)
    if causal:
        m &= d >= 0
    if window is not None:
        m &= (d >= 0) & (d < window)
    if segment_ids_BT is not None:
        m &= (segment_ids_BT[:, :, None] == kv_segment_ids_BS[:, None, :]) & (kv_segment_ids_BS != 0)[:, None, :]
    m = m[:, None, None]
    p = jax.nn.softmax(jnp.where(m, x, -1e30), axis=-1) * m.astype(jnp.float32)
    return jnp.einsum("bkgts,bske->btkge", p, v_BSKE.astype(jnp.float32)).reshape(b, t, h, -1).astype(q_BTHC.dtype)


attention = attention_reference
