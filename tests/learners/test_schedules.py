"""Learning rates, against values worked out by hand."""

from __future__ import annotations

import pytest

from grpo_gsm8k.errors import ConfigError
from grpo_gsm8k.learners.schedules import learning_rate


def rates(kind: str, total: int, warmup: int, floor: float = 0.0) -> list[float]:
    return [learning_rate(step, total=total, warmup=warmup, kind=kind, peak=8.0, floor=floor) for step in range(total)]


def test_warm_up_rises_to_the_peak_and_the_rest_follows_its_kind() -> None:
    assert rates("constant", 4, 2) == [4.0, 8.0, 8.0, 8.0]
    assert rates("linear", 6, 2) == [4.0, 8.0, 8.0, 6.0, 4.0, 2.0]
    assert rates("linear", 4, 0, floor=4.0) == [8.0, 7.0, 6.0, 5.0]
    assert rates("cosine", 4, 0) == pytest.approx([8.0, 4 * (1 + 0.5**0.5), 4.0, 4 * (1 - 0.5**0.5)])
    assert rates("cosine", 2, 0, floor=2.0) == [8.0, 5.0]


def test_warm_up_may_take_all_steps() -> None:
    assert rates("cosine", 2, 2) == [4.0, 8.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": 4, "total": 4}, "step 4 has no learning rate"),
        ({"step": 0, "total": 4, "warmup": 5}, "5 warm-up steps do not fit into 4"),
        ({"step": 0, "total": 4, "kind": "cosin"}, "did you mean 'cosine'"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        learning_rate(peak=1.0, **arguments)  # type: ignore[arg-type]
