"""Rotary position embedding (Su 2021). B batch, T time, H heads, C head dim, R rotated pairs (at most C / 2).

Half layout, as Llama and GPT-NeoX weights have it: channel i of the first half of the rotated width is paired with channel
i of its second half. Angles are position x frequency in float32: a position above 256 is no bfloat16 number.

A context-extension scheme mixes each frequency f with its slowed-down version f / factor, f' = keep f + (1 - keep) f / factor,
and is defined by `keep` in [0, 1]: how far the channel is left as it was.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxeff.core.target import platform


@dataclasses.dataclass(frozen=True)
class Linear:
    """Every position divided by `factor` (Chen 2023, "position interpolation")."""

    factor: float

    amplitude = 1.0

    def keep(self, frequency_R: np.ndarray, base: float) -> np.ndarray:
        """0: every channel is slowed down."""
        return np.zeros_like(frequency_R)


@dataclasses.dataclass(frozen=True)
class Llama3:
    """Llama 3.1: channels that turn more than `high_freq_factor` times within the original context are left alone, those
    below `low_freq_factor` turns are slowed down, with a linear passage in between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int

    amplitude = 1.0

    def __post_init__(self):
        if not self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"Llama3 needs low_freq_factor < high_freq_factor, found {self.low_freq_factor} and {self.high_freq_factor}"
            )

    def keep(self, frequency_R: np.ndarray, base: float) -> np.ndarray:
        """By the number of turns within the original context."""
        turns_R = self.original_max_position * frequency_R / (2 * math.pi)
        return np.clip((turns_R - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1)


@dataclasses.dataclass(frozen=True)
class Yarn:
    """YaRN (Peng 2023): as Llama3, with a passage that is linear in the channel's number, between the channels that turn
    `beta_fast` and `beta_slow` times; cosines and sines are multiplied by an attention factor, 0.1 ln(factor) + 1 if None.

    truncate: round the ends of the passage outwards to whole channels, as the published code does.
    """

    factor: float
    original_max_position: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self):
        if not self.beta_slow < self.beta_fast:
            raise ValueError(f"Yarn needs beta_slow < beta_fast, found {self.beta_slow} and {self.beta_fast}")

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    def keep(self, frequency_R: np.ndarray, base: float) -> np.ndarray:
        """By the channel's number."""
        R = len(frequency_R)

        def channel(turns: float) -> float:
            """The (fractional) channel that turns so many times within the original context."""
            return R * math.log(self.original_max_position / (turns * 2 * math.pi)) / math.log(base)

        low, high = channel(self.beta_fast), channel(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        # The published bounds: the upper one counts single channels, of which there are 2 R.
        low, high = max(low, 0), min(high, 2 * R - 1)
        high = high + 0.001 if low == high else high
        return 1 - np.clip((np.arange(R) - low) / (high - low), 0, 1)


@dataclasses.dataclass(frozen=True)
class Rope:
    """Which channels are rotated, and how fast.

    base: the wavelength of the slowest channel is 2 pi base. fraction: the part of the head's channels that is rotated, the
    first ones. scaling: None, or how the frequencies are stretched for a longer context.
    """

    base: float = 10000.0
    fraction: float = 1.0
    scaling: Linear | Llama3 | Yarn | None = None

    def __post_init__(self):
        if not 0 < self.fraction <= 1:
            raise ValueError(f"Rope.fraction must be above 0 and at most 1, found {self.fraction}")
        if not self.base > 1:
            raise ValueError(f"Rope.base must be above 1, found {self.base}")
        if self.scaling is not None and not self.scaling.factor > 0:
            raise ValueError(f"the scaling factor must be positive, found {self.scaling.factor}")

    def width(self, head_dim: int) -> int:
        """2 R, the number of rotated channels. Raises ValueError unless it is even and at least 2."""
        n = int(head_dim * self.fraction)
        if n < 2 or n % 2:
            raise ValueError(f"rope rotates pairs of channels: fraction {self.fraction} of head_dim {head_dim} is {n}")
        return n

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Radians per position [R], float64."""
        R = self.width(head_dim) // 2
        frequency_R = self.base ** (-np.arange(R) / R)
        if self.scaling is None:
            return frequency_R
        keep_R = self.scaling.keep(frequency_R, self.base)
        return frequency_R * (keep_R + (1 - keep_R) / self.scaling.factor)


def cos_sin(positions_BT: jax.Array, head_dim: int, rope: Rope) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) of every angle [B, T, R], float32, times the scaling's amplitude."""
    frequency_R = jnp.asarray(rope.frequencies(head_dim), jnp.float32)
    angle_BTR = positions_BT[:, :, None].astype(jnp.float32) * frequency_R[None, None]
    amplitude = 1.0 if rope.scaling is None else rope.scaling.amplitude
    return jnp.cos(angle_BTR) * amplitude, jnp.sin(angle_BTR) * amplitude


def rope(x_BTHC: jax.Array, positions_BT: jax.Array, rope: Rope) -> jax.Array:
    """x with its first 2 R channels rotated by their position; the others are unchanged.

    positions_BT: integers [B, T] (or [1, T], the same for every row). Result in x's shape and dtype.
    """
    cos_BTR, sin_BTR = cos_sin(positions_BT, x_BTHC.shape[-1], rope)
    cos_BT1R, sin_BT1R = cos_BTR[:, :, None], sin_BTR[:, :, None]
    R = cos_BTR.shape[-1]
    if platform() == "tpu" and x_BTHC.dtype.itemsize == 2:
        return _by_product(x_BTHC, cos_BT1R, sin_BT1R)
    first, second = x_BTHC[..., :R].astype(jnp.float32), x_BTHC[..., R : 2 * R].astype(jnp.float32)
    turned = (first * cos_BT1R - second * sin_BT1R, second * cos_BT1R + first * sin_BT1R)
    return jnp.concatenate([*(part.astype(x_BTHC.dtype) for part in turned), x_BTHC[..., 2 * R :]], axis=-1)


def _by_product(x_BTHC, cos_BT1R, sin_BT1R):
    """The same where channels lie along a vector's lanes and a matrix unit moves them quicker: a product with a matrix of one 1 or
    -1 a row, which rounds nothing, brings each channel's partner."""
    C, R = x_BTHC.shape[-1], cos_BT1R.shape[-1]
    partner_CC = np.zeros((C, C), np.float32)
    partner_CC[range(R, 2 * R), range(R)] = -1
    partner_CC[range(R), range(R, 2 * R)] = 1
    # As a batch of one: policies that keep products with weights for the backward pass would keep this one, too.
    factors = x_BTHC[None], partner_CC.astype(x_BTHC.dtype)[None]
    other_BTHC = jax.lax.dot_general(*factors, (((4,), (1,)), ((0,), (0,))), preferred_element_type=jnp.float32)[0]
    whole = lambda x, fill: jnp.pad(
        jnp.concatenate([x, x], -1), ((0, 0),) * 3 + ((0, C - 2 * R),), constant_values=fill
    )
    turned_BTHC = x_BTHC.astype(jnp.float32) * whole(cos_BT1R, 1.0) + other_BTHC * whole(sin_BT1R, 0.0)
    return turned_BTHC.astype(x_BTHC.dtype)
