#!/usr/bin/env bash
# Reasoning traces to a fine-tuned model, on a CPU: traces -> format -> pretokenize -> render-eval -> sft -> report.
#
#     scripts/reason_end_to_end.sh [FOLDER]        (default: artifacts/reasoning)
#
# The traces come from the tests' local server, which answers with published solutions and misbehaves now and then. For the real
# thing leave the server out, export DEEPSEEK_API_KEY, drop --base_url, and take GSM8K, a bigger model and its preset.
set -euo pipefail
cd "$(dirname "$0")/.."

OUT=${1:-artifacts/reasoning}
PYTHON=${PYTHON:-.venv/bin/python}
NUM_TRACES=${NUM_TRACES:-3200}
GRPO_GSM8K="$PYTHON -m grpo_gsm8k.cli"
export DEEPSEEK_API_KEY=${DEEPSEEK_API_KEY:-any-word-for-a-local-server}

step() { printf '\n== %s\n' "$*"; }

step "problems"
$GRPO_GSM8K data prep --dataset tiny --artifacts_dir "$OUT"

step "traces, asked of a local server (every 50th fails at first, every 40th answer is wrong)"
rm -f "$OUT/port.txt"
$PYTHON tests/trace_server.py --problems "$OUT/tiny/train.jsonl" --port_file "$OUT/port.txt" --latency_ms 2 \
  --trouble_every 50 --wrong_every 40 &
SERVER=$!
trap 'kill $SERVER 2>/dev/null || true' EXIT
until [ -s "$OUT/port.txt" ]; do
  kill -0 $SERVER
  sleep 0.1
done
$PYTHON grpo_gsm8k/r1_traces.py --infile "$OUT/tiny/train.jsonl" --outfile "$OUT/traces.jsonl" --limit "$NUM_TRACES" \
  --base_url "http://127.0.0.1:$(cat "$OUT/port.txt")" --concurrency 32 --max-tokens 2048 --max-retries 5 --offpeak 0.25

step "pairs: cleaned, graded, without duplicates"
$GRPO_GSM8K traces format --infile "$OUT/traces.jsonl" --outfile "$OUT/pairs.jsonl" --artifacts_dir "$OUT"

step "training shards"
$GRPO_GSM8K data pretokenize --infile "$OUT/pairs.jsonl" --out_dir "$OUT/shards" --artifacts_dir "$OUT"

step "eval set"
$GRPO_GSM8K data render-eval --infile "$OUT/tiny/val.jsonl" --limit 200 --outfile "$OUT/val.jsonl" --artifacts_dir "$OUT"

step "supervised fine-tuning, evaluated all along in a process of its own"
$GRPO_GSM8K sft --config sft-tiny --data_path "$OUT/shards" --eval_set_path "$OUT/val.jsonl" --artifacts_dir "$OUT"

step "report"
$GRPO_GSM8K report latest --artifacts-dir "$OUT"
