"""Determinism is asked for, and what was got is recorded; seeds are addresses."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_gsm8k.runs.determinism import configure_torch, derive_seed, ensure_environment, environment

PROBE = """
import json, os, sys
from grpo_gsm8k.runs.determinism import ensure_environment
toggles = ensure_environment(sys.argv[1], 1, may_restart=sys.argv[2] == "restart")
print(json.dumps({"hash": hash("a fixed text"), "got": {t.name: [t.asked, t.got, t.decided_by] for t in toggles}}))
"""


def probe(mode: str, restart: str, **variables: str) -> dict[str, object]:
    kept = {name: value for name, value in os.environ.items() if name not in environment("strict", 1)}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, mode, restart],
        env={**kept, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_the_hash_seed_is_pinned_by_starting_again() -> None:
    first, second = probe("strict", "restart"), probe("strict", "restart")
    assert first == second
    assert first["got"]["PYTHONHASHSEED"] == ["0", "0", "harness"]  # type: ignore[index]


def test_without_a_restart_the_record_says_what_was_really_got() -> None:
    assert probe("strict", "stay")["got"]["PYTHONHASHSEED"] == ["0", "random", "harness"]  # type: ignore[index]


def test_a_toggle_that_the_environment_holds_is_kept_and_recorded_as_its_choice() -> None:
    got = probe("strict", "restart", NVIDIA_TF32_OVERRIDE="1", PYTHONHASHSEED="7")["got"]
    assert got["NVIDIA_TF32_OVERRIDE"] == ["0", "1", "environment"]  # type: ignore[index]
    assert got["PYTHONHASHSEED"] == ["0", "7", "environment"]  # type: ignore[index]
    assert got["CUBLAS_WORKSPACE_CONFIG"] == [":4096:8", ":4096:8", "harness"]  # type: ignore[index]


def test_fast_mode_asks_for_less() -> None:
    assert "CUBLAS_WORKSPACE_CONFIG" in environment("strict", 2)
    assert "CUBLAS_WORKSPACE_CONFIG" not in environment("fast", 2)
    assert environment("fast", 2)["OMP_NUM_THREADS"] == "2"


def test_torch_is_pinned_and_what_it_says_afterwards_is_recorded() -> None:
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    try:
        toggles = {toggle.name: toggle for toggle in configure_torch(torch, "strict", 5, 1)}
        assert toggles["torch.use_deterministic_algorithms"].got == "True"
        assert toggles["torch.num_threads"].got == "1"
        assert toggles["torch.initial_seed"].got == "5"
        first = torch.rand(3).tolist()
        configure_torch(torch, "strict", 5, 1)
        assert torch.rand(3).tolist() == first
        toggles = {toggle.name: toggle for toggle in configure_torch(torch, "fast", 5, 1)}
        assert toggles["torch.use_deterministic_algorithms"].got == "False"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)


def test_a_seed_is_a_fixed_function_of_its_address() -> None:
    assert derive_seed(31415, 0, "gsm8k/test/00000", 0) == derive_seed(31415, 0, "gsm8k/test/00000", 0)
    assert derive_seed(0, 0, "a", 0) == 188315908632375  # a change here makes every earlier run unrepeatable


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.text(max_size=3), st.integers(0, 9)), unique=True, max_size=50)
)
def test_different_addresses_have_different_seeds_below_2_to_48(addresses: list[tuple[int, int, str, int]]) -> None:
    seeds = [derive_seed(*address) for address in addresses]
    assert all(0 <= seed < 2**48 for seed in seeds)
    separated = {(run, step, problem.replace("\x1f", ""), index) for run, step, problem, index in addresses}
    assert len(set(seeds)) >= len(separated)


def test_threads_are_the_harnesss_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    toggles = {toggle.name: toggle for toggle in ensure_environment("strict", 2, may_restart=False)}
    assert toggles["OMP_NUM_THREADS"].got == "2"
