#!/usr/bin/env python3
"""The README's speed table: griffin-np and its peers, measured in turns on one machine.

    python kernels/benchmarks/peers.py --llamacpp PYTHON --transformers PYTHON --json peers.json

``--llamacpp`` is a Python that has llama-cpp-python and gguf, ``--transformers`` one that has torch
and transformers; a peer whose Python is not given is left out. ``peer_llamacpp.py`` and
``peer_transformers.py`` tell what they need and what they measure.

A machine's speed drifts, so a peer stands between two runs of griffin-np: ours, peer, ours, peer,
ours for two rounds. Every run of a peer is compared with both of its neighbours, and the ratio is
given with the least and the greatest of these. All weights are random, in the true shapes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
OURS = [sys.executable, "-c", "import sys; from griffin_np.cli import main; sys.exit(main())"]

ROWS = {
    "prefill": ("pp512", "pp2048"),
    "decode": ("tg64",),
    "depth": ("tg64 @ d2048", "tg64 @ d16384"),
    "batch": ("tg64 b8",),
}
SHARED = ("pp512", "pp2048", "tg64")
"""Tests that peers run, too."""

PEERS = {"bfloat16": "transformers", "int8": "llamacpp", "int4": "llamacpp"}
PEER_NAMES = {
    "bfloat16": "transformers, the same model, bfloat16",
    "int8": "llama.cpp, Gemma-2B Q8_0",
    "int4": "llama.cpp, Gemma-2B Q4_0",
}
PEER_OPTIONS = {"bfloat16": ["--dtype", "bfloat16"], "int8": ["--quant", "q8_0"], "int4": []}


@dataclass
class Comparison:
    """All runs of one dtype, ours and its peer's, in the order in which they were made."""

    dtype: str
    ours: list[dict] = field(default_factory=list)
    peer: list[dict] = field(default_factory=list)

    def result(self, test: str) -> list[dict]:
        """Our results of a test, of all runs that have it."""
        return [r for run in self.ours for r in run["results"] if r["test"] == test]

    def ratios(self, test: str) -> list[float]:
        """Our speed over the peer's, for every two runs that follow each other."""
        mine = [result["tokens_per_second"] for result in self.result(test)]
        theirs = [statistics.mean(run["tokens_per_second"][test]) for run in self.peer
                  if test in run["tokens_per_second"]]  # fmt: skip
        return [
            speed / other
            for turn, other in enumerate(theirs)
            for speed in mine[turn : turn + 2]
        ]  # fmt: skip


def run_json(command: list[str], note: str) -> dict:
    """The JSON document that a command prints last."""
    print(note, file=sys.stderr, flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-5:]
        raise SystemExit("\n".join([f"{note}: exit code {done.returncode}", *last]))
    return json.loads(done.stdout.strip().splitlines()[-1])


def bench(args: argparse.Namespace, dtype: str, tests: list[str]) -> dict:
    """One turn of ours: ``griffin-np bench``, one call for each depth and batch."""
    calls: dict[tuple[str, str], list[str]] = {}
    for test in tests:
        kind, *rest = test.split()
        depth = next((part[1:] for part in rest if part.startswith("d")), "0")
        batch = next((part[1:] for part in rest if part.startswith("b")), "1")
        option = {"pp": "-p", "tg": "-n"}[kind[:2]]
        calls.setdefault((depth, batch), []).extend([option, kind[2:]])
    documents = []
    for (depth, batch), lengths in calls.items():
        command = [*OURS, "bench", "--json", "--preset", args.preset, "--dtype", dtype,
                   "-r", str(args.repetitions), "-d", depth, "-b", batch, *lengths]  # fmt: skip
        if args.backend:
            command += ["--backend", args.backend]
        if args.threads:
            command += ["--threads", str(args.threads)]
        note = f"griffin-np {dtype}: {' '.join(lengths)} -d {depth} -b {batch}"
        documents.append(run_json(command, note))
    first = documents[0]
    ceilings = [document["machine"]["read_ceiling_gbps"] for document in documents]
    first["machine"]["read_ceiling_gbps"] = statistics.median(ceilings)
    first["results"] = [result for document in documents for result in document["results"]]
    return first


def peer(args: argparse.Namespace, dtype: str, tests: list[str]) -> dict:
    """One turn of the peer that a dtype is compared with."""
    name = PEERS[dtype]
    command = [getattr(args, name), str(HERE / f"peer_{name}.py"), *PEER_OPTIONS[dtype], *tests]
    command += ["-r", str(args.repetitions)]
    if args.threads:
        command += ["--threads", str(args.threads)]
    if name == "llamacpp" and args.folder:
        command += ["--folder", args.folder]
    return run_json(command, f"{PEER_NAMES[dtype]}: {' '.join(tests)}")


def compare(args: argparse.Namespace, dtype: str) -> Comparison:
    """Ours and the peer's in turns; tests without a peer only in our first turn."""
    found = Comparison(dtype)
    tests = [test for row in args.rows for test in ROWS[row]]
    shared = [test for test in tests if test in SHARED]
    found.ours.append(bench(args, dtype, tests))
    if getattr(args, PEERS[dtype]) and shared:
        for _ in range(args.rounds):
            found.peer.append(peer(args, dtype, shared))
            found.ours.append(bench(args, dtype, shared))
    return found


def table(comparisons: list[Comparison], rows: list[str]) -> str:
    """Markdown: a line for each test and dtype."""
    lines = [
        "| test | dtype | tokens/s | weights, GB/s | of ceiling | peak memory, GB "
        "| peer | its tokens/s | ours / peer (least - greatest) |",
        "|---|---|---:|---:|---:|---:|---|---:|---:|",
    ]
    for test in (test for row in rows for test in ROWS[row]):
        for comparison in comparisons:
            cells = [test, comparison.dtype, *our_cells(comparison, test)]
            lines.append(f"| {' | '.join([*cells, *peer_cells(comparison, test)])} |")
    return "\n".join(lines)


def our_cells(comparison: Comparison, test: str) -> list[str]:
    """Speed, bandwidth, its share of the ceiling, peak memory; means over all runs."""
    results = comparison.result(test)
    cells = []
    for key, form in (
        ("tokens_per_second", "{:.1f}"),
        ("weights_gbps", "{:.1f}"),
        ("fraction_of_ceiling", "{:.0%}"),
    ):
        values = [result[key] for result in results if result[key] is not None]
        cells.append(form.format(statistics.mean(values)) if values else "")
    peaks = [r["peak_rss_bytes"] for r in results if r["peak_rss_bytes"] is not None]
    return [*cells, f"{max(peaks) / 1e9:.2f}" if peaks else ""]


def peer_cells(comparison: Comparison, test: str) -> list[str]:
    """Name, speed and ratio; empty where there is no peer."""
    ratios = comparison.ratios(test)
    if not ratios:
        return ["", "", ""]
    speed = statistics.mean(
        statistics.mean(run["tokens_per_second"][test]) for run in comparison.peer
    )
    ratio = f"{statistics.mean(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"
    return [PEER_NAMES[comparison.dtype], f"{speed:.1f}", ratio]


def machine_line(comparisons: list[Comparison]) -> str:
    """Processor, threads, and the range of the read ceiling over all runs."""
    machines = [run["machine"] for comparison in comparisons for run in comparison.ours]
    ceilings = [machine["read_ceiling_gbps"] for machine in machines]
    return (
        f"{machines[0]['cpu']}, {machines[0]['threads']} threads, read ceiling "
        f"{statistics.median(ceilings):.1f} GB/s ({min(ceilings):.1f} - {max(ceilings):.1f})"
    )


def chosen(known):
    """A parser of comma-separated names."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        wrong = [name for name in names if name not in known]
        if wrong:
            raise argparse.ArgumentTypeError(f"no {wrong[0]!r}; choose from {', '.join(known)}")
        return names

    return parse


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--preset", default="recurrentgemma-2b", help="size of our model (recurrentgemma-2b)")
    add("--rows", type=chosen(ROWS), default=list(ROWS), metavar="ROW,...", help=", ".join(ROWS))
    add("--dtypes", type=chosen(PEERS), default=list(PEERS), metavar="D,...",
        help=", ".join(PEERS))  # fmt: skip
    add("--backend", help="our engine (the default one)")
    add("--threads", type=int, help="of ours and of the peers (as each of them chooses)")
    add("-r", "--repetitions", type=int, default=3, help="of every test in every run (3)")
    add("--rounds", type=int, default=2, help="runs of every peer (2)")
    add("--llamacpp", metavar="PYTHON", help="with llama-cpp-python and gguf")
    add("--transformers", metavar="PYTHON", help="with torch and transformers")
    add("--folder", help="where llama.cpp's models are kept (the temporary folder)")
    add("--json", metavar="FILE", help="write every figure of every run here")
    args = parser.parse_args()
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5:
        # Threads that spin in barriers, llama.cpp's above all, slow down many times over when
        # another process takes a core: such a table would flatter whoever was disturbed less.
        print("warning: other processes are running; wait until they are done", file=sys.stderr)
    comparisons = []
    for dtype in args.dtypes:
        comparisons.append(compare(args, dtype))
        if args.json:  # after each, so that an interrupted run has left what it measured
            Path(args.json).write_text(json.dumps([asdict(c) for c in comparisons], indent=1))
    print(machine_line(comparisons), end="\n\n")
    print(table(comparisons, args.rows))


if __name__ == "__main__":
    main()
