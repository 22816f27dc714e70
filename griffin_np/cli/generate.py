"""Continue a text.

griffin-np generate "Once upon a time" --temp 0.8 --seed 1
cat story.txt | griffin-np generate - --state-out story.state
griffin-np generate " The end" --state-in story.state
"""

import argparse
import json
import sys
from pathlib import Path

from griffin_np.cli.common import (
    add_model_options,
    add_sampling_options,
    load_model,
    read_prompt,
    sampling_options,
    say,
    thread_limit,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="text to continue; - reads stdin"
    )
    parser.add_argument("-p", "--prompt", dest="prompt_option", metavar="TEXT", help="the same")
    parser.add_argument("--state-in", metavar="FILE", help="go on from this state")
    parser.add_argument("--state-out", metavar="FILE", help="save the state after the text")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--no-stream", action="store_true", help="print the text when it is complete"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no statistics on stderr")
    add_model_options(parser)
    add_sampling_options(parser, max_tokens=256)


def run(args: argparse.Namespace) -> int:
    from griffin_np.errors import SamplingError, StateError
    from griffin_np.state import State

    if args.prompt is not None and args.prompt_option is not None:
        raise SamplingError("the prompt is given twice: as an argument and with --prompt")
    if args.state_out and not Path(args.state_out).absolute().parent.is_dir():
        raise StateError(f"cannot write {args.state_out}: there is no such folder")
    given = args.prompt if args.prompt is not None else args.prompt_option
    prompt = read_prompt(given)
    with thread_limit(args.threads):
        model = load_model(args)
        state = State.load(args.state_in) if args.state_in else None
        if state is not None:
            state.check_model(model.config, model.fingerprint, args.state_in)
        options = sampling_options(args)
        options |= {"state": state, "progress": _progress(args.quiet)}
        show = not args.json and not args.no_stream
        interrupted = False
        if model.backend == "jax" and not show and not args.state_out:
            # Nothing has to be seen before the end, so the whole loop can run on the device.
            return _report(args, prompt, model.generate(prompt, **options), model, False, show)
        stream = model.stream(prompt, **options)
        try:
            if show and sys.stdout.isatty():
                print(f"\033[2m{prompt}\033[0m", end="")
            for piece in stream:
                if show:
                    print(piece, end="", flush=True)
        except KeyboardInterrupt:
            interrupted = True
        result = stream.result
        if args.state_out:
            after = stream.state
            after.arrays()  # which all processes fetch together
            if args.first_process:
                after.save(args.state_out)
    return _report(args, prompt, result, model, interrupted, show)


def _report(args: argparse.Namespace, prompt: str, result, model, interrupted, show) -> int:
    """Text or document to stdout, statistics to stderr; the exit code."""
    if args.json:
        print(json.dumps(_document(prompt, result, model), ensure_ascii=False))
    else:
        print("" if show else result.text)
    say(
        f"[prompt {result.prompt_tokens} tokens, {result.prompt_tokens_per_second:.1f} tokens/s · "
        f"text {len(result.tokens)} tokens, {result.tokens_per_second:.1f} tokens/s · "
        f"seed {result.seed} · {'interrupted' if interrupted else result.finish_reason}]",
        args.quiet,
    )
    return 130 if interrupted else 0


def _progress(quiet: bool):
    """Progress on stderr while a long prompt is read."""
    if quiet or not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        if total > 512:
            print(f"\rreading the prompt: {done} of {total} tokens", end="", file=sys.stderr)
            if done == total:
                print("\r\033[K", end="", file=sys.stderr, flush=True)

    return show


def _document(prompt: str, result, model) -> dict:
    return {
        "model": {"backend": model.backend, "dtype": model.dtype, "fingerprint": model.fingerprint},
        "prompt": prompt,
        "text": result.text,
        "tokens": result.tokens,
        "logprobs": result.logprobs,
        "finish_reason": result.finish_reason,
        "seed": result.seed,
        "prompt_tokens": result.prompt_tokens,
        "generation_tokens": len(result.tokens),
        "prompt_tokens_per_second": result.prompt_tokens_per_second,
        "generation_tokens_per_second": result.tokens_per_second,
    }
