"""Glossary: every symbol of the papers, and who calls it what.

========  ========================  ==========================  ==============================
symbol    here                      DeepMind's code             Hugging Face
========  ========================  ==========================  ==============================
D         ``width``                 ``width``                   ``hidden_size``
N         ``depth``                 ``num_layers``              ``num_hidden_layers``
D_RNN, R  ``lru_width``             ``lru_width``               ``lru_width``
M D, E    ``mlp_width``             ``mlp_expanded_width``      ``intermediate_size / 2``
H         ``num_heads``             ``num_heads``               ``num_attention_heads``
Q         ``num_kv_heads``          1                           ``num_key_value_heads``
W         ``window``                ``attention_window_size``   ``attention_window_size``
K         ``conv_width``            ``conv1d_temporal_width``   ``conv1d_width``
V         ``vocab_size``            ``vocab_size``              ``vocab_size``
x_t       ``x[t]``                  ``x``                       ``activations``
r_t (1)   ``r``, recurrence gate    ``gate_a``                  ``recurrent_gate``
i_t (2)   ``i``, input gate         ``gate_x``                  ``input_gate``
W_a, b_a  ``w_a``, ``b_a``          ``a_gate.w``, ``.b``        ``recurrent_gate_weight, _bias``
W_x, b_x  ``w_x``, ``b_x``          ``input_gate.w``, ``.b``    ``input_gate_weight, _bias``
Lambda    ``-a_param``              ``-a_param``                ``-recurrent_param``
c         ``C`` = 8                 8.0                         8.0
a_t (3)   ``a``                     ``a``                       ``recurrent_gate``
h_t (4)   ``h``                     ``y``                       ``recurrent_states``
p_t       ``positions[t]``          ``segment_pos``             ``position_ids``
========  ========================  ==========================  ==============================

The paper writes ``a = sigmoid(Lambda)``; the released code stores the number whose softplus is
``-log a``, so ``a_param = -Lambda`` (softplus(-z) = -log sigmoid(z)). Checkpoints hold ``a_param``.

The reference computes one row of a batch at a time, without padding. Its shapes use these letters,
and the aliases below put them into signatures, where the tests check them: T tokens, G = R / H
channels of a gate's block, Q key-value heads, d channels of an attention head.
"""

from collections.abc import Callable
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

Stream = Annotated[Floats, "T D"]
"""Residual stream, or the input or output of a block."""
Channels = Annotated[Floats, "T R"]
"""Sequence inside a recurrent block."""
Hidden = Annotated[Floats, "R"]
"""State of the recurrence, or one time step of it."""
ConvState = Annotated[Floats, "K-1 R"]
"""Last inputs of the convolution, oldest first."""
Heads = Annotated[Floats, "T H d"]
"""Queries, or the output of attention before it is projected."""
KeyValues = Annotated[Floats, "T Q d"]
"""Keys or values of the tokens at hand."""
Ring = Annotated[Floats, "W Q d"]
"""Keys or values of the last W positions; position p stands in slot ``p mod W``."""
Positions = Annotated[NDArray[np.int64], "T"]
"""Position of each token in its document; 0 starts one."""

Trace = Callable[[str, NDArray], None]
"""Receives intermediate results by name."""


def no_trace(name: str, array: NDArray) -> None:
    """The trace that watches nothing."""


def scoped(trace: Trace, scope: str) -> Trace:
    """A trace that puts ``scope.`` before every name."""
    if trace is no_trace:
        return no_trace
    return lambda name, array: trace(f"{scope}.{name}", array)
