#!/usr/bin/env python3
"""Speed of transformers' RecurrentGemma-2B on this CPU, random weights of the true shapes.

    python kernels/benchmarks/peer_transformers.py pp512 pp2048 tg16 [--dtype float32]

Needs torch and transformers. Decoding takes the most probable token each time, as transformers'
own greedy loop does. Prints one JSON line.
"""

import argparse
import json
import re
import time

import torch
import transformers


def random_model(dtype: torch.dtype) -> transformers.RecurrentGemmaForCausalLM:
    """Made without memory first, then filled: float32 weights of this size need not fit."""
    config = transformers.RecurrentGemmaConfig(intermediate_size=15360, num_key_value_heads=1)
    with torch.device("meta"):
        model = transformers.RecurrentGemmaForCausalLM(config)
    model = model.to(dtype).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.02, generator=generator)
            else:
                parameter.zero_()
        for name, buffer in model.named_buffers():
            # Buffers made on the meta device are empty: without these two the text is NaN.
            if name.endswith("inv_freq"):
                steps = torch.arange(len(buffer), dtype=torch.float32) / len(buffer)
                buffer.copy_(10000.0**-steps)
            elif name.endswith("normalizer"):
                buffer.fill_(config.hidden_size**0.5)
    model.tie_weights()
    return model.eval()


def prefill(model, count: int) -> tuple[torch.Tensor, float]:
    """Logits of the last token, and seconds."""
    tokens = torch.randint(3, model.config.vocab_size, (1, count))
    began = time.perf_counter()
    logits = model(tokens, use_cache=True, logits_to_keep=1).logits
    return logits, time.perf_counter() - began


def decode(model, count: int, depth: int) -> float:
    """Seconds of ``count`` tokens after ``depth`` others."""
    logits, _ = prefill(model, max(depth, 1))
    began = time.perf_counter()
    for step in range(count):
        token = logits[:, -1:].argmax(-1)
        position = torch.tensor([[max(depth, 1) + step]])
        logits = model(token, use_cache=True, position_ids=position).logits
    return time.perf_counter() - began


def measure(model, test: str, repetitions: int) -> list[float]:
    """Tokens per second of each repetition of ``pp512``, ``tg64`` or ``tg64 @ d2048``."""
    kind, count, depth = re.fullmatch(r"(pp|tg)(\d+)(?: @ d(\d+))?", test).groups()
    count, depth = int(count), int(depth or 0)
    if kind == "pp" and depth:
        raise SystemExit("transformers resets its state in every call of more than one token")
    speeds = []
    for _ in range(repetitions):
        took = prefill(model, count)[1] if kind == "pp" else decode(model, count, depth)
        speeds.append(count / took)
    return speeds


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tests", nargs="+")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("-r", "--repetitions", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    model = random_model(getattr(torch, args.dtype))
    prefill(model, 8)
    speeds = {test: measure(model, test, args.repetitions) for test in args.tests}
    parameters = sum(p.numel() for p in model.parameters())
    print(
        json.dumps(
            {
                "model": f"RecurrentGemma-2B {args.dtype}",
                "parameters": parameters,
                "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
                "threads": args.threads,
                "version": f"transformers {transformers.__version__}, torch {torch.__version__}",
                "tokens_per_second": speeds,
            }
        )
    )


if __name__ == "__main__":
    main()
