"""Products with packed weights: right, the same bits for any rows, and on every instruction set."""

import hashlib
import importlib
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llvmlite import binding, ir
from numba import njit, types
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic
from support import tokens_for

from griffin_conformance.envelope import chain_bound
from griffin_kernels.cpu import isa
from griffin_kernels.cpu.isa import amx
from griffin_kernels.cpu.matmul import BFLOAT16, FLOAT32, INT4, INT8, WIDENED
from griffin_kernels.cpu.operations import multiplied
from griffin_kernels.cpu.pack import pack, unpack
from griffin_kernels.cpu.quantise import dequantise, quantise
from griffin_kernels.cpu.simd import LANES, load, store_bfloat16
from griffin_np.errors import ParameterError

KINDS = {"float32": FLOAT32, "bfloat16": BFLOAT16, "int8": INT8, "int4": INT4, "widened": WIDENED}
ROWS = 40
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
integer_kinds = pytest.mark.parametrize("kind", [INT8, INT4], ids=["int8", "int4"])
on_amx = pytest.mark.skipif(not amx.permitted(), reason="no AMX here")
LARGEST = {INT8: 127, INT4: 7}


def draw(seed: int, rows: int, K: int, N: int) -> tuple[np.ndarray, np.ndarray]:
    """Activations (rows, K) and weights (N, K), some groups of them zero."""
    rng = np.random.default_rng(seed)
    x, weights = rng.standard_normal((rows, K)), rng.standard_normal((N, K)) / np.sqrt(K)
    x[rng.random(x.shape) < 0.05] = 0
    x[0, :64], weights[-1, :64] = 0, 0
    return x.astype(np.float32), weights.astype(np.float32)


def as_taken(x: np.ndarray, kind: int) -> np.ndarray:
    """Activations as products take them, float64."""
    if kind in (FLOAT32, WIDENED):
        return x.astype(np.float64)
    if kind == BFLOAT16:
        return x.astype(ml_dtypes.bfloat16).astype(np.float64)
    groups = x.reshape(len(x), -1, 64)
    most = np.abs(groups).max(axis=-1, keepdims=True)
    inverse = np.float32(127) / np.where(most > 0, most, np.float32(np.inf))
    whole = np.rint(groups.astype(np.float64) * inverse)
    return (whole * (most.astype(np.float64) / 127)).reshape(x.shape)


@every_kind
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999),
    rows=st.integers(1, ROWS),
    groups=st.integers(1, 5),
    pieces=st.integers(1, 3),
    tiles=st.booleans(),
)
def test_products_are_right(kind, seed, rows, groups, pieces, tiles):
    """To the rounding of K additions, of the sum of all terms' sizes."""
    K, N = 64 * groups, 64 * pieces
    x, weights = draw(seed, rows, K, N)
    taken = as_taken(x, kind)
    known = unpack(pack(weights, kind), kind, N, K).astype(np.float64)
    found = multiplied(x, weights, kind, tiles and amx.permitted())
    assert found.shape == (rows, N)
    allowed = chain_bound(K + 4, "float32") * (np.abs(taken) @ np.abs(known).T)
    np.testing.assert_array_less(np.abs(found - taken @ known.T), allowed + 1e-37)


@every_kind
@pytest.mark.parametrize("tiles", [False, pytest.param(True, marks=on_amx)], ids=["", "amx"])
@pytest.mark.parametrize("K", [64, 320])
def test_a_row_has_the_same_bits_among_any_number_of_rows(kind, tiles, K):
    x, weights = draw(1, ROWS, K, 128)
    whole = multiplied(x, weights, kind, tiles)
    for rows in range(1, ROWS):
        np.testing.assert_array_equal(multiplied(x[:rows], weights, kind, tiles), whole[:rows])
    for row in range(0, ROWS, 3):
        alone = multiplied(x[row : row + 1], weights, kind, tiles)
        np.testing.assert_array_equal(alone[0], whole[row])


@every_kind
def test_an_output_has_the_same_bits_in_any_panel(kind):
    x, weights = draw(2, 5, 192, 192)
    whole = multiplied(x, weights, kind, False)
    order = np.random.default_rng(0).permutation(192)
    np.testing.assert_array_equal(multiplied(x, weights[order], kind, False), whole[:, order])


@on_amx
@integer_kinds
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), rows=st.integers(1, ROWS), groups=st.integers(1, 5))
def test_tiles_change_no_bit_of_integer_products(kind, seed, rows, groups):
    x, weights = draw(seed, rows, 64 * groups, 64)
    expected = multiplied(x, weights, kind, False)
    np.testing.assert_array_equal(multiplied(x, weights, kind, True), expected)


@integer_kinds
@pytest.mark.parametrize("tiles", [False, pytest.param(True, marks=on_amx)], ids=["", "amx"])
def test_whole_numbers_are_multiplied_exactly(kind, tiles):
    """With scales of 1, where no float32 rounds: the extremes of both factors among them."""
    rng, largest = np.random.default_rng(3), LARGEST[kind]
    x = rng.integers(-127, 128, (ROWS, 256))
    weights = rng.integers(-largest, largest + 1, (64, 256))
    x[0], x[1], x[2, ::2], x[2, 1::2] = 127, -127, 127, -127
    weights[0], weights[1], weights[2, ::2], weights[2, 1::2] = largest, -largest, largest, -largest
    x[3:, ::64], weights[3:, ::64] = 127, largest
    if kind == INT4:
        weights[3] = rng.integers(-8, 8, 256)
        weights[3, ::64] = -8
    known = unpack(pack(weights.astype(np.float32), kind), kind, 64, 256)
    np.testing.assert_array_equal(known, weights)
    found = multiplied(x.astype(np.float32), weights.astype(np.float32), kind, tiles)
    np.testing.assert_array_equal(found, x @ weights.T)


@every_kind
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so_and_in_its_row(kind, value):
    x, weights = draw(4, 3, 128, 64)
    weights = np.abs(weights) + np.float32(0.01)
    expected = multiplied(x, weights, kind, False)
    x[1, 70] = value
    found = multiplied(x, weights, kind, False)
    assert not np.isfinite(found[1]).any()
    np.testing.assert_array_equal(found[[0, 2]], expected[[0, 2]])


# -- packing


@every_kind
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), groups=st.integers(1, 4), pieces=st.integers(1, 4))
def test_packing_loses_what_rounding_loses(kind, seed, groups, pieces):
    N, K = 64 * pieces, 64 * groups
    weights = draw(seed, 1, K, N)[1]
    data = pack(weights, kind)
    if kind == FLOAT32:
        expected = weights
    elif kind in (BFLOAT16, WIDENED):
        expected = weights.astype(ml_dtypes.bfloat16).astype(np.float32)
    else:
        bits = 8 if kind == INT8 else 4
        expected = dequantise(*quantise(weights, bits), bits)
    np.testing.assert_array_equal(unpack(data, kind, N, K), expected)
    # The same weights come out again, though a scale may be halved, and its codes doubled.
    np.testing.assert_array_equal(unpack(pack(expected, kind), kind, N, K), expected)
    # A transposed view, as checkpoints hold them.
    turned = pack(np.ascontiguousarray(weights.T).T, kind)
    np.testing.assert_array_equal(turned, data)


@every_kind
def test_packing_puts_channels_in_their_places(kind):
    weights = draw(5, 1, 48, 100)[1]
    outputs, inputs = np.full(128, -1), np.full(64, -1)
    outputs[np.arange(100) + 20 * (np.arange(100) >= 50)] = np.arange(100)
    inputs[8:56] = np.arange(48)[::-1]
    full = unpack(pack(weights, kind, outputs, inputs), kind, 128, 64)
    wide = np.zeros((128, 64), np.float32)
    wide[np.ix_(outputs >= 0, inputs >= 0)] = weights[:, ::-1]
    np.testing.assert_array_equal(full, unpack(pack(wide, kind), kind, 128, 64))
    assert (full[outputs < 0] == 0).all() and (full[:, inputs < 0] == 0).all()


def test_long_matrices_are_packed_in_slabs():
    weights = np.random.default_rng(6).standard_normal((4096 + 64, 64)).astype(np.float32)
    for kind in (FLOAT32, INT8, INT4):
        whole, end = pack(weights, kind), pack(weights[4096:], kind)
        np.testing.assert_array_equal(whole[-len(end) :], end)


@integer_kinds
def test_what_is_not_finite_is_not_packed(kind):
    weights = draw(7, 1, 64, 64)[1]
    weights[5, 6] = np.nan
    with pytest.raises(ParameterError, match="not finite"):
        pack(weights, kind)


@njit(error_model="numpy")
def _rounded(x, out):
    for i in range(0, len(x), LANES):
        store_bfloat16(out, i, load(x, i))


def test_bfloat16_is_rounded_as_ml_dtypes_does():
    rng = np.random.default_rng(8)
    bits = rng.integers(0, 2**32, 1 << 20, dtype=np.uint64).astype(np.uint32)
    halves = np.arange(1 << 16, dtype=np.uint32) << 16  # every bfloat16, and around the middles
    x = np.concatenate([bits, halves, halves | 0x7FFF, halves | 0x8000, halves | 0x8001])
    x = x.view(np.float32)
    out = np.empty(len(x), np.uint16)
    _rounded(x, out)
    with np.errstate(invalid="ignore"):
        expected = x.astype(ml_dtypes.bfloat16)
    found, nan = out.view(ml_dtypes.bfloat16), np.isnan(x)
    np.testing.assert_array_equal(out[~nan], expected.view(np.uint16)[~nan])
    assert np.isnan(found[nan].astype(np.float32)).all()
    np.testing.assert_array_equal(out[nan] >> 15, x[nan].view(np.uint32) >> 31)


# -- instruction sets

HOST = frozenset(f[1:] for f in get_host_cpu_features().split(",") if f.startswith("+"))
NEEDED = {
    "avx512": {"avx512f", "avx512bw", "avx512vnni"},
    "avxvnni": {"avx512vl", "avx512vnni"},  # its instruction has the same intrinsic in both
    "avx2": {"avx2"},
    "generic": set(),
    "neon": {"dotprod"},
}


def runs_here(name: str) -> bool:
    return NEEDED[name] <= HOST or (name == "avxvnni" and "avxvnni" in HOST)


def dots_of(name: str, bits: int, rows: int):
    """A module's products of one group, as a function of arrays."""
    emit = getattr(importlib.import_module(f"griffin_kernels.cpu.isa.{name}"), f"emit_int{bits}")
    byte, word = ir.IntType(8), ir.IntType(32)

    @intrinsic
    def dots(typing, weights, x, corrections, out):
        def generate(context, builder, signature, args):
            def at(n: int, offset: int, kind):
                data = context.make_array(signature.args[n])(context, builder, args[n]).data
                data = builder.bitcast(data, byte.as_pointer())
                data = builder.gep(data, [ir.Constant(ir.IntType(64), offset)])
                return builder.bitcast(data, kind.as_pointer())

            found = emit(
                builder, at(0, 0, byte), [at(1, 64 * r, byte) for r in range(rows)],
                [builder.load(at(2, 4 * r, word)) for r in range(rows)],
            )  # fmt: skip
            assert len(found) == 2 * rows
            for i, vector in enumerate(found):
                builder.store(vector, at(3, 64 * i, vector.type)).align = 4
            return context.get_dummy_value()

        return types.void(weights, x, corrections, out), generate

    @njit
    def run(weights, x, corrections, out):
        dots(weights, x, corrections, out)

    return run


def groups_of_extremes(bits: int, rows: int):
    """Codes (32, 64) and activations (rows, 64): all extreme pairs of neighbours, and drawn ones."""
    rng, low = np.random.default_rng(bits), -127 if bits == 8 else -8
    high = 127 if bits == 8 else 7
    for case in range(40):
        q, x = rng.integers(low, high + 1, (32, 64)), rng.integers(-127, 128, (rows, 64))
        if case < 4:
            q[:], x[:] = (low, high)[case % 2], (-127, 127)[case // 2]
        elif case < 12:
            q, x = rng.choice([low, high], q.shape), rng.choice([-127, 127], x.shape)
        elif case < 16:
            q[::2], x[:, ::3] = 0, 0
        yield q, x


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", NEEDED)
def test_every_instruction_set_gives_the_exact_integers(name, bits):
    if not runs_here(name):
        pytest.skip(f"this processor has no {name}")
    tile = importlib.import_module(f"griffin_kernels.cpu.isa.{name}").TILE_ROWS
    for rows in sorted({1, tile}):
        run = dots_of(name, bits, rows)
        for q, x in groups_of_extremes(bits, rows):
            codes = (q + (128 if bits == 8 else 8)).astype(np.uint8)
            if bits == 8:
                data = codes.reshape(32, 16, 4).transpose(1, 0, 2)
            else:
                both = codes[:16] | (codes[16:] << 4)
                data = both.reshape(16, 16, 4).transpose(1, 0, 2)
            corrections = (-(128 if bits == 8 else 8) * x.sum(axis=1)).astype(np.int32)
            out = np.full(32 * rows, -1, np.int32)
            run(np.ascontiguousarray(data).ravel(), x.astype(np.int8).ravel(), corrections, out)
            np.testing.assert_array_equal(out.reshape(rows, 32), x @ q.T)


@pytest.mark.parametrize(
    ("features", "name"),
    [
        ({"avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512vnni"}, "avx512"),
        ({"avx2", "fma", "avx512f", "avx512bw", "avx512vl"}, "avx2"),
        ({"avx2", "fma", "avxvnni"}, "avxvnni"),
        ({"avx2", "fma"}, "avx2"),
        ({"neon", "dotprod"}, "neon"),
        ({"neon"}, "generic"),
        (set(), "generic"),
    ],
)
def test_the_instruction_set_that_is_chosen(features, name):
    assert isa.choose(frozenset(features)) == name


def digest() -> str:
    """Bits of integer products, in decoding and prefill."""
    text = hashlib.sha256()
    for kind in (INT8, INT4):
        for rows in (1, 2, 7, 40):
            x, weights = draw(rows, rows, 192, 64)
            text.update(multiplied(x, weights, kind, amx.permitted()).tobytes())
    return text.hexdigest()


def digest_of_models() -> str:
    """Bits of logits and states of quantised models."""
    from test_cpu_engine import SMALL, WHOLE, random_parameters

    from griffin_kernels.cpu.engine import NumbaModel

    text = hashlib.sha256()
    for config, dtype in ((SMALL, "int8"), (WHOLE, "int8"), (WHOLE, "int4")):
        found = NumbaModel(config, random_parameters(config, 0), "", dtype)
        logits, state = found(tokens_for(config, (2, 20), 0))
        for array in (logits, *state.arrays().values()):
            text.update(array.tobytes())
    return text.hexdigest()


@pytest.mark.parametrize(
    ("processor", "name", "models"), [("haswell", "avx2", True), ("x86-64", "generic", False)]
)
def test_other_processors_give_the_same_bits(processor, name, models):
    """Of a whole model for AVX2; of products alone where a fused multiply-add is a call."""
    if os.uname().machine != "x86_64":
        pytest.skip("compiles for x86")
    digests = "t.digest(), t.digest_of_models()" if models else "t.digest()"
    code = (
        f"import sys; sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r})\n"
        f"import test_cpu_products as t; print(t.isa.NAME, {digests})"
    )
    environment = {**os.environ, "NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=environment)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    expected = [name, digest(), *([digest_of_models()] if models else [])]
    assert done.stdout.split() == expected


@pytest.mark.parametrize("bits", [8, 4])
def test_the_code_for_arm_has_dot_instructions(bits):
    """One ``sdot`` for every 4 outputs, 4 inputs and row: nothing was unrolled into something else."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    try:
        target = binding.Target.from_triple("aarch64-linux-gnu")
    except RuntimeError:
        pytest.skip("this LLVM has no target for ARM")
    neon = importlib.import_module("griffin_kernels.cpu.isa.neon")
    rows, byte, word = neon.TILE_ROWS, ir.IntType(8), ir.IntType(32)
    module = ir.Module()
    pointer = byte.as_pointer()
    signature = ir.FunctionType(ir.VoidType(), [pointer] * (1 + rows) + [word] * rows + [pointer])
    function = ir.Function(module, signature, "dots")
    builder = ir.IRBuilder(function.append_basic_block())
    weights, *others, out = function.args
    found = getattr(neon, f"emit_int{bits}")(builder, weights, others[:rows], others[rows:])
    assert len(found) == 2 * rows
    for i, vector in enumerate(found):
        assert vector.type == ir.VectorType(word, 16)
        at = builder.gep(out, [ir.Constant(ir.IntType(64), 64 * i)])
        builder.store(vector, builder.bitcast(at, vector.type.as_pointer())).align = 4
    builder.ret_void()
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    machine = target.create_target_machine(features="+neon,+dotprod", opt=2)
    text = machine.emit_assembly(parsed)
    assert text.count("sdot") == 16 * 8 * rows
