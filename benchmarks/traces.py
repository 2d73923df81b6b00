"""Seconds and memory of trace generation against a local server that takes 50 ms an answer, in one run.

    python benchmarks/traces.py [--problems 1000] [--concurrency 64] [--latency_ms 50] [--runs 5]

The ideal is ceil(problems / concurrency) rounds of the latency. The server is a process of its own. "run" is from the first
request to the last line of the outfile; "process" has Python's start and its imports as well. Peak memory is the client's,
and is measured at ten times the problems too: it must hardly grow.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLIENT = """
import json, pathlib, re, sys, time
from grpo_gsm8k import r1_traces
async def timed(run, ask=r1_traces.Generation.run):
    began = time.perf_counter()
    await ask(run)
    timed.seconds = time.perf_counter() - began
r1_traces.Generation.run = timed
code = r1_traces.main(sys.argv[1:])
peak = re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())
print(json.dumps({"code": code, "s": timed.seconds, "mb": int(peak[1]) / 1024, "cpu_s": time.process_time()}))
"""


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--latency_ms", type=float, default=50.0)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    print(f"Python {sys.version.split()[0]}, concurrency {given.concurrency}, {given.latency_ms:g} ms, {given.runs} runs\n")
    print("| problems | ideal s | run s (median, best) | of ideal | process s | its CPU s | peak MB |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        for num in (given.problems, 10 * given.problems):
            infile, port_file = Path(name) / f"{num}.jsonl", Path(name) / f"{num}.port"
            rows = ({"question": f"What is {n} + 1?", "answer": f"{'So it goes on. ' * 200}#### {n + 1}"} for n in range(num))
            infile.write_text("".join(json.dumps(row) + "\n" for row in rows))
            arguments = ["--problems", str(infile), "--port_file", str(port_file), "--latency_ms", str(given.latency_ms)]
            server = subprocess.Popen([sys.executable, str(ROOT / "tests" / "trace_server.py"), *arguments])
            try:
                while not port_file.exists():
                    time.sleep(0.05)
                runs = [measure(infile, port_file.read_text(), given.concurrency, number) for number in range(given.runs)]
            finally:
                server.terminate()
                server.wait()
            ideal = math.ceil(num / given.concurrency) * given.latency_ms / 1000
            median = {key: statistics.median(run[key] for run in runs) for key in ("s", "process_s", "cpu_s")}
            best, peak_mb = (min(run["s"] for run in runs), max(run["mb"] for run in runs))
            row = (
                f"{median['s']:.3f}, {best:.3f} | {median['s'] / ideal:.2f} | {median['process_s']:.2f} | {median['cpu_s']:.2f}"
            )
            print(f"| {num} | {ideal:.2f} | {row} | {peak_mb:.0f} |", flush=True)


def measure(infile: Path, port: str, concurrency: int, number: int) -> dict[str, float]:
    """Returns seconds and peak memory of one run."""
    outfile = infile.with_suffix(f".{number}.out")
    flags = ["--infile", infile, "--outfile", outfile, "--base_url", f"http://127.0.0.1:{port}", "--concurrency", concurrency]
    began = time.perf_counter()
    command = [sys.executable, "-c", CLIENT, *map(str, flags)]
    environment = {**os.environ, "DEEPSEEK_API_KEY": "a-local-key"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    found: dict[str, float] = json.loads(done.stdout)
    assert found["code"] == 0, done.stderr
    outfile.unlink()
    return {**found, "process_s": time.perf_counter() - began}


if __name__ == "__main__":
    main()
