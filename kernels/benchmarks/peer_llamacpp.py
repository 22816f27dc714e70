#!/usr/bin/env python3
"""Speed of llama.cpp on a Gemma-2B of random weights: what a laptop user would run instead.

    python kernels/benchmarks/peer_llamacpp.py pp512 tg64 "tg64 @ d2048" [--quant q8_0]

Needs gguf and a llama-cpp-python built for this machine (ten minutes or more):
``CMAKE_ARGS="-DGGML_NATIVE=ON" pip install --no-binary llama-cpp-python llama-cpp-python``.
llama.cpp has no RecurrentGemma; Gemma-2B is the nearest model that it has, with 2.5 billion weights
against 2.7. As in llama-bench, decoding is fed random tokens and nothing is sampled, which leaves
out work that our own figure contains. Prints one JSON line.
"""

import argparse
import json
import os
import re
import tempfile
import time
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

LAYERS, WIDTH, HIDDEN, HEADS, HEAD_WIDTH, VOCABULARY = 18, 2048, 16384, 8, 256, 256_000
KINDS = {"q4_0": gguf.GGMLQuantizationType.Q4_0, "q8_0": gguf.GGMLQuantizationType.Q8_0}
MATRICES = {
    "attn_q": (HEADS * HEAD_WIDTH, WIDTH),
    "attn_k": (HEAD_WIDTH, WIDTH),
    "attn_v": (HEAD_WIDTH, WIDTH),
    "attn_output": (WIDTH, HEADS * HEAD_WIDTH),
    "ffn_gate": (HIDDEN, WIDTH),
    "ffn_up": (HIDDEN, WIDTH),
    "ffn_down": (WIDTH, HIDDEN),
}
PARAMETERS = VOCABULARY * WIDTH + LAYERS * sum(n * k for n, k in MATRICES.values())


def random_blocks(rng: np.random.Generator, shape: tuple[int, int], kind) -> np.ndarray:
    """A quantised matrix of random integers; every block of it has the same small scale."""
    per_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = shape
    blocks = rng.integers(0, 256, (rows, columns // per_block, block_bytes), np.uint8)
    blocks[:, :, :2] = np.frombuffer(np.float16(0.001).tobytes(), np.uint8)  # the scale comes first
    return blocks.reshape(rows, -1)


def write_model(path: Path, kind) -> None:
    """A GGUF file with Gemma-2B's shapes and a made-up vocabulary."""
    writer = gguf.GGUFWriter(path.with_suffix(".part"), "gemma")
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_key_length(HEAD_WIDTH)
    writer.add_value_length(HEAD_WIDTH)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_context_length(65536)
    writer.add_tokenizer_model("llama")
    special = [b"<pad>", b"<eos>", b"<bos>", b"<unk>", *(b"<0x%02X>" % i for i in range(256))]
    writer.add_token_list(special + [b"t%d" % i for i in range(VOCABULARY - len(special))])
    writer.add_token_scores([0.0] * VOCABULARY)
    control, unknown, byte, normal = 3, 2, 6, 1
    types = [control] * 3 + [unknown] + [byte] * 256
    writer.add_token_types(types + [normal] * (VOCABULARY - len(types)))
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    rng = np.random.default_rng(0)
    ones = np.ones(WIDTH, np.float32)
    embedding = random_blocks(rng, (VOCABULARY, WIDTH), kind)
    writer.add_tensor("token_embd.weight", embedding, raw_dtype=kind)
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", ones)
        for name, shape in MATRICES.items():
            blocks = random_blocks(rng, shape, kind)
            writer.add_tensor(f"blk.{layer}.{name}.weight", blocks, raw_dtype=kind)
    writer.add_tensor("output_norm.weight", ones)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".part").rename(path)


def measure(model: llama_cpp.Llama, test: str, repetitions: int, rng) -> list[float]:
    """Tokens per second of each repetition of ``pp512``, ``tg64`` or either ``@ d2048``."""
    kind, count, depth = re.fullmatch(r"(pp|tg)(\d+)(?: @ d(\d+))?", test).groups()
    count, depth = int(count), int(depth or 0)
    draw = lambda n: rng.integers(3, VOCABULARY, n).tolist()  # noqa: E731
    model.reset()
    if depth:
        model.eval(draw(depth))
    speeds = []
    for _ in range(repetitions):
        model.n_tokens = depth  # the next call forgets what comes after this
        tokens = draw(count)
        began = time.perf_counter()
        for part in [tokens] if kind == "pp" else [[token] for token in tokens]:
            model.eval(part)
        speeds.append(count / (time.perf_counter() - began))
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tests", nargs="+")
    parser.add_argument("--quant", choices=KINDS, default="q4_0")
    parser.add_argument("-r", "--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()),
                        help="where the model is kept: 1.4 GB as q4_0, 2.7 GB as q8_0")  # fmt: skip
    args = parser.parse_args()
    path = args.folder / f"random-gemma-2b-{args.quant}.gguf"
    if not path.exists():
        write_model(path, KINDS[args.quant])
    longest = max(sum(map(int, re.findall(r"\d+", test))) for test in args.tests)
    model = llama_cpp.Llama(
        str(path), n_ctx=longest + 64, n_batch=512, n_threads=args.threads,
        n_threads_batch=args.threads, verbose=False,
    )  # fmt: skip
    rng = np.random.default_rng(1)
    measure(model, "pp64", 1, rng)  # reads the file into memory
    measure(model, "tg4", 1, rng)
    speeds = {test: measure(model, test, args.repetitions, rng) for test in args.tests}
    print(
        json.dumps(
            {
                "model": f"Gemma-2B {args.quant}",
                "parameters": PARAMETERS,
                "weight_bytes": path.stat().st_size,
                "threads": args.threads,
                "system_info": llama_cpp.llama_print_system_info().decode(),
                "version": llama_cpp.__version__,
                "tokens_per_second": speeds,
            }
        )
    )


if __name__ == "__main__":
    main()
