"""The shape of a Griffin model: one frozen, validated configuration, and the presets.

Sources: Griffin (De et al. 2024) sections 2 and 3 for the paper's models, the RecurrentGemma
report (Botev et al. 2024) table 1 for the released ones.
"""

import math
from dataclasses import asdict, dataclass, fields, replace
from itertools import cycle, islice

from griffin_np.errors import ConfigError

__all__ = ["ATTENTION", "PRESETS", "RECURRENT", "GriffinConfig"]

RECURRENT = "recurrent"
ATTENTION = "attention"


@dataclass(frozen=True, kw_only=True)
class GriffinConfig:
    """Everything that determines the function a Griffin model computes, except its weights.

    Parameters
    ----------
    width : int
        D, the width of the residual stream.
    depth : int
        N, the number of residual blocks. The block pattern is repeated and cut at this length.
    num_heads : int
        H, attention heads, and the number of diagonal blocks of the RG-LRU gates.
    vocab_size : int
        V, rows of the embedding, which is also the output head.
    lru_width : int, optional
        D_RNN, channels of the recurrence. Default: ``width``.
    mlp_width : int, optional
        M D, the expanded width of the gated MLP. Default: ``3 * width``.
    num_kv_heads : int
        Key-value heads: 1 is multi-query attention, ``num_heads`` is multi-head.
    window : int
        W, the past positions that a token attends to beside itself: W + 1 keys in all.
    block_pattern : tuple of {"recurrent", "attention"}
        Temporal-mixing blocks in order, before repetition and truncation.
    conv_width : int
        K, temporal width of the convolution.
    logits_soft_cap : float
        c in ``c * tanh(logits / c)``; 0 means no cap.
    scale_embeddings : bool
        Multiply embeddings by ``sqrt(width)`` (rounded to bfloat16, as in training).
    rope_base : float
        Base of the rotary embedding's geometric sequence of wavelengths.
    rope_fraction : float
        Share of each head's dimensions that is rotated, in [0, 1].
    norm_eps : float
        Added to the mean square in RMSNorm.
    pad_id, eos_id, bos_id : int
        Special token ids.

    Raises
    ------
    ConfigError
        For any combination that no model can have; the message gives the numbers.
    """

    width: int
    depth: int
    num_heads: int
    vocab_size: int
    lru_width: int | None = None
    mlp_width: int | None = None
    num_kv_heads: int = 1
    window: int = 2048
    block_pattern: tuple[str, ...] = (RECURRENT, RECURRENT, ATTENTION)
    conv_width: int = 4
    logits_soft_cap: float = 30.0
    scale_embeddings: bool = True
    rope_base: float = 10000.0
    rope_fraction: float = 0.5
    norm_eps: float = 1e-6
    pad_id: int = 0
    eos_id: int = 1
    bos_id: int = 2

    def __post_init__(self):
        if self.lru_width is None:
            object.__setattr__(self, "lru_width", self.width)
        if self.mlp_width is None and isinstance(self.width, int):
            object.__setattr__(self, "mlp_width", 3 * self.width)
        if isinstance(self.block_pattern, list):
            object.__setattr__(self, "block_pattern", tuple(self.block_pattern))
        _check(self)

    @property
    def block_types(self) -> tuple[str, ...]:
        """Kind of each of the ``depth`` blocks: the pattern repeated, the last round cut short."""
        return tuple(islice(cycle(self.block_pattern), self.depth))

    @property
    def head_dim(self) -> int:
        """Channels of one attention head, ``width / num_heads``."""
        return self.width // self.num_heads

    @property
    def rotary_dim(self) -> int:
        """Leading channels of each head that the rotary embedding turns."""
        return int(self.head_dim * self.rope_fraction)

    @property
    def gate_width(self) -> int:
        """Side of one diagonal block of the RG-LRU gates, ``lru_width / num_heads``."""
        assert self.lru_width is not None
        return self.lru_width // self.num_heads

    @property
    def embedding_scale(self) -> float:
        """What embeddings are multiplied by: ``sqrt(width)`` rounded to bfloat16, or 1.

        The official code casts the factor to bfloat16 whatever the compute dtype, so the released
        2B weights expect 50.5, not 50.596.
        """
        return round_to_bfloat16(math.sqrt(self.width)) if self.scale_embeddings else 1.0

    def num_parameters(self) -> int:
        """Number of weights; the tied embedding counts once."""
        from griffin_np.params import parameter_shapes

        return sum(math.prod(shape) for shape in parameter_shapes(self).values())

    def state_bytes(self, batch: int = 1, float_bytes: int = 4) -> int:
        """Bytes of a state: constant in the length of the text.

        ``float_bytes`` is the size of a convolution input, key or value; the recurrent state
        always takes 4 bytes a channel (or 8, where ``float_bytes`` is 8).
        """
        assert self.lru_width is not None
        recurrent = self.lru_width * ((self.conv_width - 1) * float_bytes + max(4, float_bytes))
        attention = 2 * self.window * self.num_kv_heads * self.head_dim * float_bytes
        per_kind = {RECURRENT: recurrent, ATTENTION: attention}
        return batch * (8 + sum(per_kind[kind] for kind in self.block_types))

    def replace(self, **changes) -> "GriffinConfig":
        """A copy with some fields changed, validated again."""
        return replace(self, **changes)

    def to_dict(self) -> dict:
        """Fields as plain JSON values."""
        return {**asdict(self), "block_pattern": list(self.block_pattern)}

    @classmethod
    def from_dict(cls, values: dict) -> "GriffinConfig":
        """Inverse of :meth:`to_dict`.

        Raises
        ------
        ConfigError
            If a field is unknown or missing, by name.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(f"unknown configuration fields {unknown}; known: {sorted(known)}")
        missing = [
            name for name in ("width", "depth", "num_heads", "vocab_size") if name not in values
        ]
        if missing:
            raise ConfigError(f"configuration fields {missing} are missing")
        return cls(**values)

    @classmethod
    def preset(cls, name: str) -> "GriffinConfig":
        """One of :data:`PRESETS` by name.

        Raises
        ------
        ConfigError
            If there is no such preset; the message lists them.
        """
        if name not in PRESETS:
            raise ConfigError(f"no preset {name!r}; choose one of {', '.join(PRESETS)}")
        return PRESETS[name]


def round_to_bfloat16(value: float) -> float:
    """The bfloat16 nearest to a positive normal ``value`` (8 significant bits, ties to even)."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(mantissa * 256), exponent - 8)


def _check(c: GriffinConfig) -> None:
    positive = (
        "width", "depth", "num_heads", "vocab_size", "lru_width", "mlp_width", "num_kv_heads",
        "window", "conv_width",
    )  # fmt: skip
    for name in positive:
        value = getattr(c, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} must be an integer of at least 1, got {value!r}")
    for name in ("pad_id", "eos_id", "bos_id"):
        value = getattr(c, name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < c.vocab_size:
            raise ConfigError(
                f"{name} must be a token id in [0, vocab_size={c.vocab_size}), got {value!r}"
            )
    for name, low, high in (
        ("logits_soft_cap", 0.0, math.inf),
        ("rope_fraction", 0.0, 1.0),
        ("rope_base", 1.0, math.inf),
        ("norm_eps", 0.0, math.inf),
    ):
        value = getattr(c, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not low <= value <= high:
            raise ConfigError(f"{name} must be a number in [{low:g}, {high:g}], got {value!r}")
    if not isinstance(c.scale_embeddings, bool):
        raise ConfigError(f"scale_embeddings must be True or False, got {c.scale_embeddings!r}")

    pattern = c.block_pattern
    if not isinstance(pattern, tuple) or not pattern or set(pattern) - {RECURRENT, ATTENTION}:
        raise ConfigError(
            f"block_pattern must be a non-empty tuple of {RECURRENT!r} and {ATTENTION!r}, "
            f"got {pattern!r}"
        )
    assert c.lru_width is not None
    if RECURRENT in c.block_types and c.lru_width % c.num_heads:
        raise ConfigError(
            f"lru_width {c.lru_width} is not divisible by num_heads {c.num_heads}: the RG-LRU "
            f"gates are block-diagonal with one block per head"
        )
    if ATTENTION in c.block_types:
        if c.width % c.num_heads:
            raise ConfigError(
                f"width {c.width} is not divisible by num_heads {c.num_heads}: "
                f"head_dim = width / num_heads"
            )
        if c.num_heads % c.num_kv_heads:
            raise ConfigError(
                f"num_heads {c.num_heads} is not divisible by num_kv_heads {c.num_kv_heads}: "
                f"each key-value head serves the same number of query heads"
            )
        if c.rotary_dim % 2:
            raise ConfigError(
                f"rope_fraction {c.rope_fraction:g} of head_dim {c.head_dim} rotates "
                f"{c.rotary_dim} channels; rotation works on pairs, so this must be even"
            )


PRESETS: dict[str, GriffinConfig] = {
    "recurrentgemma-2b": GriffinConfig(width=2560, depth=26, num_heads=10, vocab_size=256_000),
    "recurrentgemma-9b": GriffinConfig(width=4096, depth=38, num_heads=16, vocab_size=256_000),
    "griffin-7b": GriffinConfig(
        width=4096, depth=32, num_heads=32, vocab_size=256_000, lru_width=5632, window=1024,
        logits_soft_cap=0.0, scale_embeddings=False,
    ),
    "hawk-7b": GriffinConfig(
        width=4096, depth=32, num_heads=32, vocab_size=256_000, lru_width=5632, window=1024,
        logits_soft_cap=0.0, scale_embeddings=False, block_pattern=(RECURRENT,),
    ),
    "demo": GriffinConfig(width=192, depth=8, num_heads=3, vocab_size=4000, window=128),
}  # fmt: skip
"""Released models, the paper's models, and the embedded demo model, by name."""
