"""What a person sees while a run works, where there is no terminal."""

from __future__ import annotations

import pytest

from grpo_gsm8k.runs import progress
from grpo_gsm8k.runs.progress import Progress


@pytest.mark.parametrize("every_s", [0.0, 3600.0])
def test_the_last_line_is_printed_once(
    every_s: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", every_s)
    with Progress("training", 3, unit="steps") as shown:
        for _ in range(3):
            shown.update()
    lines = capsys.readouterr().err.splitlines()
    done = [line.split(",")[0] for line in lines]
    assert done == [f"training: {n}/3 steps" for n in ((1, 2, 3) if every_s == 0.0 else (3,))]
