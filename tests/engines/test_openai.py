"""The openai engine, against a real local server that misbehaves."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from conformance import CHECKS, Subject
from model_server import Behaviour, ModelServer, Reply, Request, vllm_answer
from tiny_models import make_model

from grpo_gsm8k.engines import http_requests
from grpo_gsm8k.engines.http_requests import read_retry_after
from grpo_gsm8k.engines.openai import OpenAIEngine
from grpo_gsm8k.errors import ConfigError, EngineError, InputError, PromptError
from grpo_gsm8k.types import Completion, Prompt, Sampling

KEY = "sk-not-a-real-key-0123456789"


@pytest.fixture
def serve() -> Iterator[Callable[[Behaviour], ModelServer]]:
    servers: list[ModelServer] = []

    def start(behaviour: Behaviour) -> ModelServer:
        servers.append(ModelServer(behaviour))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_requests, "BACKOFF_BASE_S", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def prompts_of(count: int) -> list[Prompt]:
    return [Prompt(f"p{i}", (65 + i % 26, 66), "AB", ({"role": "user", "content": f"AB{i}"},)) for i in range(count)]


def echo(request: Request) -> Reply:
    """Answers with the seed, so that every answer is told apart."""
    seed = request.body["seed"]
    return vllm_answer(f"say {seed}", [7, seed % 1000], [-0.5, -0.25], chat="messages" in request.body)


def is_probe(request: Request) -> bool:
    return request.body["max_tokens"] == 1


def after_probe(behaviour: Behaviour) -> Behaviour:
    return lambda request: echo(request) if is_probe(request) else behaviour(request)


def test_engine_conforms_over_a_served_model(serve, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One server and one engine for all checks: what is served is the tiny model through the transformers engine."""
    import torch

    from grpo_gsm8k.engines.transformers import TransformersEngine

    torch.set_num_threads(1)
    model = TransformersEngine(str(make_model(tmp_path_factory.mktemp("served"), num_hidden_layers=2)), device="cpu")
    lock = threading.Lock()

    def sample(request: Request) -> Reply:
        body = request.body
        given = body["prompt"] if isinstance(body["prompt"], list) else model.tokenizer.encode(body["prompt"])
        sampling = Sampling(
            body["temperature"], body["top_p"], max(body["top_k"], 0), body["max_tokens"], tuple(body.get("stop", ()))
        )
        with lock:
            (completion,) = model.generate([Prompt("served", tuple(given))], sampling, [body["seed"]])
        text = model.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        assert completion.logprobs is not None
        said = next((stop for stop in sampling.stop if stop in text), None) if completion.stop_reason == "stop" else None
        finish = "length" if completion.stop_reason == "length" else "stop"
        return vllm_answer(text, list(completion.token_ids), list(completion.logprobs), finish=finish, stop_reason=said)

    engine = OpenAIEngine(serve(sample).url, "tiny-model", concurrency=4)
    rng = random.Random(0)
    prompts = [Prompt(f"p{i}", tuple(rng.randrange(256) for _ in range(rng.randrange(3, 20)))) for i in range(8)]
    for check in CHECKS:
        check(Subject(engine, prompts, lambda ids: model.tokenizer.decode(ids, skip_special_tokens=True)))


def test_token_ids_go_out_and_come_back(serve) -> None:
    server = serve(echo)
    engine = OpenAIEngine(server.url + "/", "m")
    out = engine.generate(prompts_of(3), Sampling(max_tokens=8, stop=("END",)), [11, 12, 13])
    assert out[1] == Completion((7, 12), (-0.5, -0.25), "eos", "say 12")
    sent = next(request for request in server.requests if request.body["seed"] == 12)
    assert sent.path == "/v1/completions"
    assert sent.body["prompt"] == [66, 66]
    assert sent.body["return_token_ids"] is True
    assert (sent.body["repetition_penalty"], sent.body["top_k"], sent.body["stop"]) == (1.0, -1, ["END"])
    assert engine.capabilities.token_ids
    assert engine.capabilities.logprobs


def test_chat_sends_messages_and_lets_the_server_render(serve) -> None:
    server = serve(echo)
    engine = OpenAIEngine(server.url, "m", api="chat")
    (completion,) = engine.generate(prompts_of(1), Sampling(max_tokens=8), [5])
    assert completion == Completion((7, 5), (-0.5, -0.25), "eos", "say 5")
    assert server.requests[-1].path == "/v1/chat/completions"
    assert server.requests[-1].body["messages"] == [{"role": "user", "content": "AB0"}]
    assert "prompt" not in server.requests[-1].body
    with pytest.raises(PromptError, match="'bare': no chat messages"):
        engine.generate([Prompt("bare", (1,))], Sampling(max_tokens=8), [5])


def test_a_strict_server_without_token_ids_gives_text_alone(serve) -> None:
    def strict(request: Request) -> Reply:
        if "return_token_ids" in request.body:
            return Reply(400, {"error": {"message": "Unrecognized request argument supplied: return_token_ids"}})
        text = "x END" if request.body["seed"] else "x"
        return Reply(body={"choices": [{"text": text, "finish_reason": "stop", "logprobs": None}]})

    engine = OpenAIEngine(serve(strict).url, "m")
    assert not engine.capabilities.token_ids
    assert not engine.capabilities.logprobs
    out = engine.generate(prompts_of(2), Sampling(max_tokens=8, stop=("END",)), [0, 1])
    assert out == [Completion((), None, "eos", "x"), Completion((), None, "stop", "x END")]
    with pytest.raises(InputError, match="top_k is 5, but the server takes no top_k"):
        engine.generate(prompts_of(1), Sampling(max_tokens=8, top_k=5), [0])


@pytest.mark.parametrize(
    ("finish", "stop_reason", "wanted"),
    [("length", None, "length"), ("stop", None, "eos"), ("stop", 151643, "eos"), ("stop", "</answer>", "stop")],
)
def test_the_reason_for_stopping_is_read(serve, finish, stop_reason, wanted) -> None:
    server = serve(lambda request: vllm_answer("t", [1], [-1.0], finish=finish, stop_reason=stop_reason))
    (completion,) = OpenAIEngine(server.url, "m").generate(prompts_of(1), Sampling(max_tokens=8), [0])
    assert completion.stop_reason == wanted


def test_a_completion_that_is_not_whole_stops_with_its_problem(serve) -> None:
    server = serve(after_probe(lambda request: vllm_answer("t", [1], [-1.0], finish="content_filter")))
    with pytest.raises(EngineError, match=r"'p0'.*'content_filter'"):
        OpenAIEngine(server.url, "m").generate(prompts_of(1), Sampling(max_tokens=8), [0])


def test_raw_logprobs_are_passed_on_only_where_they_are_those_sampled_from(serve) -> None:
    server = serve(echo)
    cold = Sampling(temperature=0.7, max_tokens=8)
    for mode, sampling, given in (
        ("raw", Sampling(max_tokens=8), True),
        ("raw", Sampling(temperature=1.0, max_tokens=8), True),
        ("raw", cold, False),
        ("raw", Sampling(temperature=1.0, top_p=0.9, max_tokens=8), False),
        ("processed", cold, True),
    ):
        (completion,) = OpenAIEngine(server.url, "m", logprobs_mode=mode).generate(prompts_of(1), sampling, [0])
        assert (completion.logprobs is not None) == given


MISBEHAVIOURS = {
    "429 with Retry-After": Reply(429, {"error": {"message": "slow down"}}, {"retry-after": "0.2"}),
    "500": Reply(500, {"error": "boom"}),
    "503 with HTML": Reply(503, "<html>busy</html>"),
    "connection reset": Reply(reset=True),
    "body cut off": Reply(200, {"choices": [{"text": "half"}]}, cut=12),
    "JSON cut off": Reply(200, '{"choices": [{"te'),
    "JSON of another kind": Reply(200, "[]"),
    "too slow": Reply(200, {"choices": []}, delay_s=0.8),
}


@pytest.mark.parametrize("trouble", MISBEHAVIOURS, ids=str)
def test_a_passing_failure_is_retried_and_nothing_is_lost(serve, trouble: str) -> None:
    def sometimes(request: Request) -> Reply:
        return MISBEHAVIOURS[trouble] if request.attempt < 2 and request.body["seed"] % 3 == 1 else echo(request)

    server = serve(after_probe(sometimes))
    engine = OpenAIEngine(server.url, "m", concurrency=4, timeout_s=0.4)
    seen: list[int] = []
    started = time.monotonic()
    out = engine.generate(prompts_of(9), Sampling(max_tokens=8), range(9), lambda index, _completion: seen.append(index))
    assert [completion.text for completion in out] == [f"say {i}" for i in range(9)]
    assert sorted(seen) == list(range(9))
    assert engine.describe()["num_retries"] == 6
    if "Retry-After" in trouble:
        assert time.monotonic() - started >= 0.4


BROKEN = {
    "completions": ({"text": None}, {}, {"text": 5}),
    "chat": ({"message": {"role": "assistant", "content": None}}, {"message": {}}, {"message": None}, {}),
}


@pytest.mark.parametrize("api", BROKEN)
def test_an_answer_without_text_is_asked_for_again_and_is_never_an_empty_completion(serve, api) -> None:
    for broken in BROKEN[api]:
        reply = Reply(body={"choices": [{"finish_reason": "stop", "token_ids": [], **broken}]})

        def once(request: Request, reply: Reply = reply) -> Reply:
            return reply if request.attempt == 0 else echo(request)

        engine = OpenAIEngine(serve(after_probe(once)).url, "m", api=api)
        (completion,) = engine.generate(prompts_of(1), Sampling(max_tokens=8), [4])
        assert completion.text == "say 4"
        assert engine.describe()["num_retries"] == 1
        engine = OpenAIEngine(serve(after_probe(lambda request, reply=reply: reply)).url, "m", api=api, max_retries=2)
        with pytest.raises(EngineError, match=r"the server's answer has no (text|message\.content) \(3 attempts\)"):
            engine.generate(prompts_of(1), Sampling(max_tokens=8), [4])


def test_an_empty_text_is_an_empty_completion(serve) -> None:
    server = serve(after_probe(lambda request: vllm_answer("", [2], [-0.5])))
    (completion,) = OpenAIEngine(server.url, "m").generate(prompts_of(1), Sampling(max_tokens=8), [0])
    assert completion.text == ""


def test_reasoning_split_off_by_the_server_says_what_to_do(serve) -> None:
    message = {"role": "assistant", "content": None, "reasoning_content": "so 2 + 2 = 4"}
    server = serve(after_probe(lambda request: Reply(body={"choices": [{"finish_reason": "length", "message": message}]})))
    with pytest.raises(EngineError, match="without a reasoning parser"):
        OpenAIEngine(server.url, "m", api="chat", max_retries=0).generate(prompts_of(1), Sampling(max_tokens=8), [0])


def test_the_description_says_only_what_the_server_really_did(serve) -> None:
    def deaf(request: Request) -> Reply:  # takes vLLM's parameters and ignores them
        return Reply(body={"choices": [{"text": "x", "finish_reason": "stop", "logprobs": None}]})

    engine = OpenAIEngine(serve(deaf).url, "m")
    engine.generate(prompts_of(1), Sampling(max_tokens=8), [0])
    said = engine.describe()
    assert (said["vllm_extensions"], said["gives_token_ids"], said["logprobs_mode"]) == (False, False, None)
    for sampling, mode in ((Sampling(temperature=0.7, max_tokens=8), None), (Sampling(max_tokens=8), "raw")):
        engine = OpenAIEngine(serve(echo).url, "m")
        assert engine.describe()["logprobs_mode"] is None
        engine.generate(prompts_of(1), sampling, [0])
        said = engine.describe()
        assert (said["vllm_extensions"], said["gives_token_ids"], said["logprobs_mode"]) == (True, True, mode)


def test_a_failure_that_does_not_pass_ends_in_one_line(serve) -> None:
    server = serve(after_probe(lambda request: Reply(500, {"error": {"message": "CUDA\nerror"}})))
    with pytest.raises(EngineError, match=r"HTTP 500: CUDA error \(3 attempts\)"):
        OpenAIEngine(server.url, "m", max_retries=2).generate(prompts_of(1), Sampling(max_tokens=8), [0])


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 422])
def test_a_refusal_stops_at_once_with_the_servers_reason(serve, status: int) -> None:
    def refuse(request: Request) -> Reply:
        return Reply(status, {"error": {"message": "because of this"}}) if request.body["seed"] == 3 else echo(request)

    server = serve(after_probe(refuse))
    engine = OpenAIEngine(server.url, "m", concurrency=1)
    delivered: list[int] = []
    with pytest.raises((EngineError, InputError), match=rf"'p3' \(HTTP {status}\): because of this") as caught:
        engine.generate(prompts_of(8), Sampling(max_tokens=8), range(8), lambda index, _completion: delivered.append(index))
    assert "\n" not in str(caught.value)
    assert delivered == [0, 1, 2]
    assert isinstance(caught.value, InputError) == (status in (400, 404, 422))
    assert sum(1 for request in server.requests if request.body["seed"] == 3) == 1


def test_an_exhausted_quota_is_not_waited_for(serve) -> None:
    error = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    server = serve(after_probe(lambda request: Reply(429, error)))
    with pytest.raises(EngineError, match="exceeded your current quota"):
        OpenAIEngine(server.url, "m").generate(prompts_of(1), Sampling(max_tokens=8), [0])
    assert len(server.requests) == 2


def test_a_very_long_retry_after_is_said_instead_of_waited(serve) -> None:
    server = serve(after_probe(lambda request: Reply(429, {"error": "later"}, {"retry-after": "86400"})))
    with pytest.raises(EngineError, match="asks to wait 86400 s"):
        OpenAIEngine(server.url, "m").generate(prompts_of(1), Sampling(max_tokens=8), [0])


def test_retry_after_is_read_as_seconds_or_as_a_date() -> None:
    assert read_retry_after("1.5") == 1.5
    assert read_retry_after("-3") == 0.0
    assert read_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert read_retry_after("soon") is None
    assert read_retry_after("nan") is None
    assert read_retry_after(None) is None


def test_the_key_is_sent_and_never_shown(serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level("DEBUG")
    server = serve(after_probe(lambda request: Reply(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}})))
    engine = OpenAIEngine(server.url, "m")
    with pytest.raises(EngineError, match=r"\[redacted\]; set OPENAI_API_KEY") as caught:
        engine.generate(prompts_of(1), Sampling(max_tokens=8), [0])
    assert server.requests[-1].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in str(caught.value) + json.dumps(engine.describe()) + caplog.text


def test_no_more_requests_run_at_once_than_asked(serve) -> None:
    server = serve(lambda request: Reply(**{**vars(echo(request)), "delay_s": 0.03}))
    engine = OpenAIEngine(server.url, "m", concurrency=5)
    engine.generate(prompts_of(40), Sampling(max_tokens=8), range(40))
    assert server.most_at_once == 5


def test_requests_are_paced_to_the_rate_asked_for(serve) -> None:
    server = serve(echo)
    engine = OpenAIEngine(server.url, "m", requests_per_minute=60 / 0.05)
    started = time.monotonic()
    engine.generate(prompts_of(8), Sampling(max_tokens=8), range(8))
    assert time.monotonic() - started >= 7 * 0.05


def test_two_hundred_requests_take_about_the_ideal_time(serve, capsys: pytest.CaptureFixture[str]) -> None:
    server = serve(lambda request: Reply(**{**vars(echo(request)), "delay_s": 0.05}))
    engine = OpenAIEngine(server.url, "m", concurrency=32)
    started = time.monotonic()
    out = engine.generate(prompts_of(200), Sampling(max_tokens=8), range(200))
    took_s = time.monotonic() - started
    with capsys.disabled():
        print(f"\n200 requests of 50 ms, 32 at once: {took_s:.2f} s (ideal {7 * 0.05:.2f} s)")
    assert [completion.text for completion in out] == [f"say {i}" for i in range(200)]
    assert took_s < 200 * 0.05


def test_a_server_that_is_down_is_one_line_and_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(EngineError, match=rf"cannot connect to http://127.0.0.1:{port}/v1/.*is the server up\?") as caught:
        OpenAIEngine(f"http://user:secret@127.0.0.1:{port}/v1", "m")
    assert "secret" not in str(caught.value)


def test_an_address_that_is_no_such_api_is_said(serve) -> None:
    with pytest.raises(EngineError, match="OpenAI-compatible API"):
        OpenAIEngine(serve(lambda request: Reply(200, {"hello": "world"})).url, "m")
    with pytest.raises(InputError, match=r"HTTP 404.*model 'm' does not exist"):
        OpenAIEngine(serve(lambda request: Reply(404, {"error": {"message": "The model 'm' does not exist"}})).url, "m")


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'chat'"):
        OpenAIEngine("http://localhost:1/v1", "m", api="chats")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="http://"):
        OpenAIEngine("localhost:8000", "m")
    for options in ({"concurrency": 0}, {"max_retries": -1}, {"timeout_s": 0.0}, {"requests_per_minute": 0.0}):
        with pytest.raises(ConfigError):
            OpenAIEngine("http://localhost:1/v1", "m", **options)


def test_inside_a_running_event_loop_it_says_so(serve) -> None:
    engine = OpenAIEngine(serve(echo).url, "m")

    async def inside() -> None:
        engine.generate(prompts_of(1), Sampling(max_tokens=8), [0])

    with pytest.raises(EngineError, match="running event loop"):
        asyncio.run(inside())


def test_an_error_of_the_callers_comes_out_as_it_is(serve) -> None:
    def full(_index: int, _completion: Completion) -> None:
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        OpenAIEngine(serve(echo).url, "m").generate(prompts_of(4), Sampling(max_tokens=8), range(4), full)


def test_ctrl_c_ends_at_once_and_leaves_no_task_behind(serve) -> None:
    server = serve(after_probe(lambda request: Reply(200, {"choices": []}, delay_s=20.0)))
    code = (
        "from grpo_gsm8k.engines.openai import OpenAIEngine\n"
        "from grpo_gsm8k.types import Prompt, Sampling\n"
        f"engine = OpenAIEngine({server.url!r}, 'm')\n"
        "try:\n"
        "    engine.generate([Prompt('p', (1, 2))] * 40, Sampling(max_tokens=8), list(range(40)))\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-X", "dev", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    deadline = time.monotonic() + 60
    while len(server.requests) < 10 and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    started = time.monotonic()
    out, err = child.communicate(timeout=15)
    assert time.monotonic() - started < 5
    assert out == "interrupted\n"
    assert "Task was destroyed" not in err
    assert "never retrieved" not in err
    assert child.returncode == 0
