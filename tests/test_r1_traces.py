"""Traces from a real local server that misbehaves in every way it can; nothing is lost, nothing is asked for twice."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import pytest

from grpo_gsm8k import r1_traces
from grpo_gsm8k.data.rows import load_problems
from grpo_gsm8k.options import options

HERE = Path(__file__).parent
SCRIPT = HERE.parent / "grpo_gsm8k" / "r1_traces.py"
AIOHTTP_AND_WHAT_IT_NEEDS = (
    *("aiohttp", "aiosignal", "aiohappyeyeballs", "attr", "attrs", "frozenlist", "idna", "multidict", "propcache", "yarl"),
    "typing_extensions.py",
)
KEY = "sk-0123456789abcdefghij"
ROWS = [{"question": f"What is {n} + 1?", "answer": f"{n} + 1 = {n + 1}.\n#### {n + 1}"} for n in range(12)]


def load_server() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trace_server", HERE / "trace_server.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["trace_server"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


trace_server = load_server()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPSEEK_API_KEY", KEY)
    monkeypatch.setattr(r1_traces, "BACKOFF_BASE_S", 0.005)
    write_problems(ROWS)
    return tmp_path


def write_problems(rows: list[dict[str, Any]]) -> None:
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def serving(trouble: Callable[[str, int], str | None] = lambda question, times: None, **how: Any) -> Any:
    return trace_server.TraceServer(trace_server.solutions_of(ROWS), trouble=trouble, **how)


def flags(server: Any, *more: str) -> list[str]:
    return ["--infile", "in.jsonl", "--outfile", "out.jsonl", "--base_url", server.base_url, *more]


def records() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("out.jsonl").read_bytes().split(b"\n")[:-1]]


def check_complete(rows: list[dict[str, Any]] = ROWS) -> None:
    """Every problem has one trace, and its own."""
    found = {record["question"]: record for record in records()}
    assert len(records()) == len(found) == len(rows)
    for question, (reasoning, final) in trace_server.solutions_of(rows).items():
        assert (found[question]["reasoning"], found[question]["answer"]) == (reasoning, final)


# --- what the server does wrong ---


@pytest.mark.parametrize("way", [*trace_server.TROUBLES, "429 0.1", "408", "blank lines", "late twice"])
def test_whatever_the_server_does_wrong_at_first_every_problem_gets_its_own_trace_once(way: str) -> None:
    with serving(lambda question, times: way if times == 1 else None, latency_s=0.04) as server:
        assert r1_traces.main(flags(server, "--concurrency", "4", "--timeout_s", "0.4" if way == "drip" else "20")) == 0
        check_complete()
        retried = way not in ("twice", "late twice", "blank lines")
        assert {record["attempt"] for record in records()} == {2 if retried else 1}
        assert len(server.asked) == 24 or not retried


def test_a_wait_that_the_server_asks_for_holds_every_request_back() -> None:
    with serving(lambda question, times: "429 0.5" if len(server.asked) == 1 else None) as server:
        assert r1_traces.main(flags(server, "--concurrency", "1")) == 0
        times = [asked.at_s for asked in server.asked]
        assert times[1] - times[0] >= 0.5


def test_a_wait_can_be_given_as_a_date_and_nonsense_is_no_wait() -> None:
    date = datetime.fromtimestamp(time.time() + 100, UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    assert 95 < r1_traces.read_refusal(503, b"", date, KEY).wait_s <= 100
    assert r1_traces.read_refusal(503, b"", "soon", KEY).wait_s == 0.0


@pytest.mark.parametrize(
    ("status", "says"), [("401", "trouble 401"), ("402", "trouble 402"), ("307", "HTTP 307"), ("404", "404")]
)
def test_what_will_not_change_stops_the_run_at_once_with_the_reason(
    status: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(lambda question, times: status if len(server.asked) > 3 else None) as server:
        began_s = time.monotonic()
        assert r1_traces.main(flags(server, "--concurrency", "1")) == 1
        assert time.monotonic() - began_s < 2
        assert len(server.asked) == 4 and len(records()) == 3
    error = capsys.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert says in line


def test_the_key_is_shown_and_stored_nowhere_even_where_the_server_repeats_it(capsys: pytest.CaptureFixture[str]) -> None:
    solutions = {row["question"]: (f"Bearer {KEY} thinks", KEY) for row in ROWS}
    with trace_server.TraceServer(solutions, trouble=lambda question, times: "400" if "11" in question else None) as server:
        assert r1_traces.main(flags(server)) == 1
        assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
    said = capsys.readouterr()
    assert "trouble 400 for Bearer [redacted]" in said.err
    assert KEY not in said.out + said.err + Path("out.jsonl").read_text()
    assert "key" not in "".join(option.key for option in options(r1_traces.TraceOptions))


def test_a_problem_that_the_server_refuses_fails_alone_and_is_asked_for_again_next_time() -> None:
    with serving(lambda question, times: "422" if question == ROWS[5]["question"] and times == 1 else None) as server:
        assert r1_traces.main(flags(server)) == 1
        assert len(records()) == 11 and len(server.asked) == 12
        assert r1_traces.main(flags(server)) == 0
        assert len(server.asked) == 13
        check_complete()


def test_failures_in_a_row_stop_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda question, times: "500") as server:
        assert r1_traces.main(flags(server, "--max_retries", "1", "--concurrency", "1")) == 1
        assert len(server.asked) == 2 * r1_traces.STOP_AFTER
    assert "8 failures in a row" in capsys.readouterr().err


def test_a_server_that_always_answers_the_same_is_believed() -> None:
    with trace_server.TraceServer({}, constant=True) as server:
        assert r1_traces.main(flags(server, "--concurrency", "2")) == 0
        assert len(records()) == 12 and len(server.asked) <= 12 + 2


# --- what is done is done ---


def test_running_again_asks_for_nothing_and_another_model_or_sample_for_itself_alone() -> None:
    with serving() as server:
        assert r1_traces.main(flags(server, "--limit", "5")) == 0
        assert r1_traces.main(flags(server, "--limit", "5")) == 0
        assert len(server.asked) == 5
        assert r1_traces.main(flags(server)) == 0
        assert len(server.asked) == 12
        assert r1_traces.main(flags(server, "--samples_per_prompt", "2")) == 0
        assert Counter(record["sample_index"] for record in records()) == {0: 12, 1: 12}
        assert r1_traces.main(flags(server, "--model", "other", "--limit", "1")) == 0
        assert len(server.asked) == 25
        assert len({asked.headers["idempotency-key"] for asked in server.asked}) == 25
        write_problems([{**ROWS[0], "id": "in/00000-x", "question": "What else is 0 + 1?"}])
        assert r1_traces.main(flags(server)) == 0
        assert len(server.asked) == 26


def test_a_torn_last_line_is_cut_off_and_one_that_only_lost_its_end_is_kept() -> None:
    with serving() as server:
        assert r1_traces.main(flags(server)) == 0
        path = Path("out.jsonl")
        path.write_bytes(path.read_bytes()[:-1])
        assert r1_traces.main(flags(server)) == 0
        assert len(server.asked) == 12
        path.write_bytes(path.read_bytes()[:-40])
        assert r1_traces.main(flags(server)) == 0
        assert len(server.asked) == 13
        check_complete()


def test_a_line_that_is_no_trace_is_refused_and_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("out.jsonl").write_text('{"prompt": "mine"}\n')
    with serving() as server:
        assert r1_traces.main(flags(server)) == 2
        assert server.asked == []
    assert "out.jsonl:1: not a trace" in capsys.readouterr().err
    assert Path("out.jsonl").read_text() == '{"prompt": "mine"}\n'


def start_script(server: Any, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), *flags(server, *more)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "DEEPSEEK_API_KEY": KEY})


def wait_for_lines(num: int) -> None:
    path = Path("out.jsonl")
    for _ in range(2000):
        if path.exists() and path.read_bytes().count(b"\n") >= num:
            return
        time.sleep(0.01)
    raise AssertionError(f"no {num} lines in time")


@pytest.mark.parametrize("heeds_keys", [False, True], ids=["plain server", "server that heeds idempotency keys"])
def test_after_kill_9_in_the_middle_nothing_is_lost_and_nothing_recorded_is_asked_for_again(heeds_keys: bool) -> None:
    rows = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(60)]
    write_problems(rows)
    with trace_server.TraceServer(trace_server.solutions_of(rows), latency_s=0.05, heeds_keys=heeds_keys) as server:
        process = start_script(server, "--concurrency", "6")
        wait_for_lines(20)
        process.kill()
        process.communicate()
        before = {json.loads(line)["question"] for line in Path("out.jsonl").read_bytes().split(b"\n")[:-1]}
        num_asked = len(server.asked)
        assert 20 <= len(before) < 60
        assert r1_traces.main(flags(server, "--concurrency", "6")) == 0
        assert not before & {asked.question for asked in server.asked[num_asked:]}
        check_complete(rows)
        again = server.charged.total() - 60
        assert again == 0 if heeds_keys else 0 <= again <= 6  # at most what was under way


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_is_under_way_end_and_asks_for_no_more(number: signal.Signals) -> None:
    with serving(latency_s=0.3) as server:
        process = start_script(server, "--concurrency", "4")
        wait_for_lines(4)
        process.send_signal(number)
        _, error = process.communicate(timeout=20)
        assert process.returncode == 128 + number, error
        assert f"stopped: {number.name}" in error
        assert len(records()) == server.charged.total() == len(server.asked) < 12


def test_two_processes_cannot_write_one_outfile(capsys: pytest.CaptureFixture[str]) -> None:
    holder = r1_traces.TraceFile(Path("out.jsonl"))
    with serving() as server:
        assert r1_traces.main(flags(server)) == 2
        assert server.asked == []
    holder.close()
    assert "another process is writing it" in capsys.readouterr().err


# --- money ---


def test_the_budget_is_never_passed_and_counts_what_earlier_runs_have_spent(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(completion_tokens=1000) as server:
        arguments = flags(server, "--concurrency", "4", "--max_tokens", "1000")
        assert r1_traces.main([*arguments, "--budget_usd", "0.01"]) == 0
        assert len(records()) == 4  # 0.0022 each: a fifth would make 0.011
        assert "the budget of 0.01 USD has no room" in capsys.readouterr().err
        assert r1_traces.main([*arguments, "--budget_usd", "0.01"]) == 0
        assert len(server.asked) == 4
        assert r1_traces.main([*arguments, "--budget_usd", "1"]) == 0
        check_complete()


def test_where_an_answer_may_cost_more_than_is_left_the_last_ones_go_one_by_one() -> None:
    with serving(completion_tokens=1000) as server:
        assert r1_traces.main(flags(server, "--concurrency", "4", "--max_tokens", "8000", "--budget_usd", "0.012")) == 0
        assert len(records()) == 5 and server.most_at_once == 1


def test_prices_by_hand() -> None:
    options = r1_traces.TraceOptions(offpeak=0.25)
    usage = {"prompt_tokens": 1000, "cached_tokens": 200, "completion_tokens": 500, "reasoning_tokens": 400}
    full = (800 * 0.55 + 200 * 0.14 + 500 * 2.19) / 1e6
    for hour, minute, factor in ((16, 29, 1), (16, 30, 0.25), (23, 59, 0.25), (0, 29, 0.25), (0, 30, 1), (12, 0, 1)):
        at = datetime(2025, 3, 1, hour, minute, tzinfo=UTC)
        assert r1_traces.price_usd(options, usage, at) == pytest.approx(full * factor)


def test_the_estimate_comes_before_and_the_total_after(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(completion_tokens=1000) as server:
        assert r1_traces.main(flags(server, "--offpeak", "0.25", "--limit", "4")) == 0
        first = capsys.readouterr().err
        assert r1_traces.main(flags(server)) == 0
        second = capsys.readouterr().err
    assert "4 traces to ask of deepseek-reasoner" in first and "3,200 completion tokens, 0.01 USD, or 0.00 in the off" in first
    assert "8 traces to ask" in second and "8,000 completion tokens" in second and "as earlier answers took" in second
    assert re.search(r"\[#{20}\] 8/8  0\.0[0-9]+ USD", second)
    assert sum(record["usage"]["completion_tokens"] for record in records()) == 12000


# --- what goes in and comes out ---


def test_a_record_says_where_it_came_from() -> None:
    with serving() as server:
        assert r1_traces.main(flags(server, "--limit", "1", "--max-tokens", "77", "--temperature", "0.5")) == 0
        (asked,) = server.asked
    (record,) = records()
    content = f"{ROWS[0]['question']}\n\n{r1_traces.INSTRUCTION}"
    assert asked.body["messages"] == [{"role": "user", "content": content}]
    assert (asked.body["max_tokens"], asked.body["temperature"], asked.body["stream"]) == (77, 0.5, False)
    assert record["id"].startswith("in/00000-") and record["gold"] == "1" and record["finish_reason"] == "stop"
    assert (record["model"], record["served_model"]) == ("deepseek-reasoner", "r1-test")
    assert record["request_id"] == "answer-0" and record["attempt"] == 1 and 0 < record["latency_s"] < 5
    assert record["cost_usd"] == pytest.approx(
        (record["usage"]["prompt_tokens"] * 0.55 + record["usage"]["completion_tokens"] * 2.19) / 1e6
    )


@pytest.mark.parametrize(
    ("message", "finish", "expected"),
    [
        ({"reasoning_content": "r", "content": "a"}, "stop", ("r", "a")),
        ({"reasoning": "r", "content": "a"}, "stop", ("r", "a")),
        ({"content": "<think>\nr\n</think>\n\na"}, "stop", ("r", "a")),
        ({"content": "r</think>a"}, "stop", ("r", "a")),
        ({"content": "<think>cut here"}, "length", ("cut here", "")),
        ({"reasoning_content": "cut", "content": None}, "length", ("cut", "")),
        ({"content": "a"}, "stop", ("", "a")),
    ],
)
def test_reasoning_is_read_from_every_place_servers_put_it(
    message: dict[str, Any], finish: str, expected: tuple[str, str]
) -> None:
    answer = json.dumps({"choices": [{"message": message, "finish_reason": finish}]}).encode()
    assert r1_traces.read_answer(answer)[1:3] == expected


def test_problems_and_their_ids_are_those_that_the_package_reads(gsm8k_dir: Path) -> None:
    ours = list(r1_traces.read_problems(gsm8k_dir / "train.jsonl"))
    theirs = load_problems(gsm8k_dir / "train.jsonl")
    assert len(ours) == 7473
    assert [(p.id, p.question, p.gold) for p in ours] == [(p.id, p.question, p.gold) for p in theirs]


@pytest.mark.parametrize(
    ("arguments", "content", "says"),
    [
        (["--infile", "absent.jsonl"], "", "absent.jsonl: cannot be read"),
        ([], "", "in.jsonl: the file is empty"),
        ([], '{"question": "q?"}\n', "in.jsonl:1: no gold"),
        ([], '{"answer": "#### 1"}\n', "in.jsonl:1: no 'question'"),
        ([], '{"question": "q?", "gold": "1"}\n{"question"', "in.jsonl:2: not JSON"),
        ([], '{"id": "a", "question": "q?", "gold": 1}\n' * 2, "in.jsonl:2: the id 'a' was given"),
        (["--base_url", "api.deepseek.com"], '{"question": "q?", "gold": "1"}\n', "no address"),
        (["--base_url", "http://me:secret@127.0.0.1/"], '{"question": "q?", "gold": "1"}\n', "hold no password"),
        (["--concurrency", "0"], '{"question": "q?", "gold": "1"}\n', "concurrency = 0: allowed is 1 or more"),
        (["--temperature", "3"], '{"question": "q?", "gold": "1"}\n', "temperature = 3.0: allowed is 0.0 to 2.0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_before_anything_is_asked(
    arguments: list[str], content: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in.jsonl").write_text(content)
    with serving() as server:
        assert r1_traces.main([*flags(server), *arguments]) == 2
        assert server.asked == []
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and says in line


@pytest.mark.parametrize("key", [None, "", "  ", "kéy", "a\nb"])
def test_without_a_key_there_is_one_line_and_exit_code_2(
    key: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if key is None:
        monkeypatch.delenv("DEEPSEEK_API_KEY")
    else:
        monkeypatch.setenv("DEEPSEEK_API_KEY", key)
    assert r1_traces.main(["--infile", "in.jsonl", "--outfile", "out.jsonl"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "DEEPSEEK_API_KEY" in line and "kéy" not in line
    assert not Path("out.jsonl").exists()


def test_no_more_requests_are_under_way_than_asked_for() -> None:
    with serving(latency_s=0.05) as server:
        assert r1_traces.main(flags(server, "--concurrency", "5")) == 0
        assert server.most_at_once == 5


def test_the_script_copied_elsewhere_needs_nothing_but_aiohttp(tmp_path: Path) -> None:
    copy, packages = tmp_path / "elsewhere" / "r1_traces.py", tmp_path / "packages"
    copy.parent.mkdir()
    packages.mkdir()
    copy.write_bytes(SCRIPT.read_bytes())
    installed = Path(aiohttp.__file__).parents[1]
    for name in AIOHTTP_AND_WHAT_IT_NEEDS:
        if (installed / name).exists():
            (packages / name).symlink_to(installed / name)
    environment = {**os.environ, "DEEPSEEK_API_KEY": KEY, "PYTHONPATH": str(packages)}
    with serving() as server:
        command = [sys.executable, "-S", str(copy), *flags(server)]  # -S: no site-packages
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        assert done.returncode == 0, done.stderr
    check_complete()


def test_the_script_run_by_its_path_is_not_misled_by_the_files_beside_it() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--max-tokens" in done.stdout and "--samples_per_prompt" in done.stdout, done.stderr
