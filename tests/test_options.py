"""An option is written once and becomes flag, file key, override, record and docs row."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_gsm8k.cli import main
from grpo_gsm8k.commands import grpo
from grpo_gsm8k.config import DataPrepConfig, EvalConfig, SftConfig
from grpo_gsm8k.config_rl import ExpertIterationConfig, GrpoConfig
from grpo_gsm8k.errors import ConfigError
from grpo_gsm8k.options import options, options_table, presets, resolve


def read(*overrides: str, config: Path | str | None = None, **flags: Any) -> Any:
    given = {key: value if isinstance(value, list) else [value] for key, value in flags.items()}
    return resolve(EvalConfig, "eval", config=None if config is None else str(config), overrides=overrides, flags=given)


def test_defaults_come_from_nowhere_else() -> None:
    resolved = read()
    assert resolved.config == EvalConfig()
    assert set(resolved.sources.values()) == {"default"}


def test_precedence_is_default_then_file_then_flag(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("limit = 3\ntop_k = 7\n")
    resolved = read("top_k=9", config=file)
    assert (resolved.config.limit, resolved.config.top_k) == (3, 9)
    assert (resolved.sources["limit"], resolved.sources["top_k"]) == (f"file {file}", "override")
    assert resolved.sources["top_p"] == "default"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.toml", 'limit = 5\ngraders = ["numeric", "math"]\nmodel-id = "tiny"\n'),
        ("x.yaml", "limit: 5\ngraders: [numeric, math]\nmodel-id: tiny\n"),
        ("x.json", '{"limit": 5, "graders": ["numeric", "math"], "model_id": "tiny"}'),
    ],
)
def test_a_file_may_be_toml_yaml_or_json_with_dashes_or_underscores(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    config = read(config=tmp_path / name).config
    assert (config.limit, config.graders, config.model_id) == (5, ("numeric", "math"), "tiny")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("limti=3", "did you mean 'limit'"),
        ("limit=-3", "a whole number of at least 1"),
        ("limit=0", "a whole number of at least 1"),
        ("limit=3.5", "a whole number"),
        ("limit=", "a whole number"),
        ("top_p=1.5", "a number from"),
        ("top_p=nan", "a number from"),
        ("temperature=inf", "a number"),
        ("temperature=none", "a number"),
        ("engine=vlm", "did you mean 'vllm'"),
        ("graders=numeric,maths", "did you mean 'math'"),
        ("graders=", "graders is empty"),
        ("num_samples=4", "greedy"),
        ("engine=openai", "base_url"),
        ("dataset=gym", "mixture"),
        ("seed=-1", "a whole number from 0"),
        ("nonsense", "key=value"),
        ("=3", "key=value"),
    ],
)
def test_a_bad_value_is_one_line_that_says_what_is_allowed(override: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(override)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_key_given_twice_must_say_the_same() -> None:
    assert read("limit=3", limit="3").config.limit == 3
    with pytest.raises(ConfigError, match="limit is given twice with two values"):
        read("limit=3", limit="4")
    with pytest.raises(ConfigError, match="limit is given twice"):
        read(limit=["3", "4"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.json", '{"limit": 5, "limit": 6}'),
        ("x.yaml", "limit: 5\nlimit: 6\n"),
        ("x.toml", "limit = 5\nlimit = 6\n"),
        ("y.toml", "eval-n = 5\neval_n = 6\n"),
    ],
)
def test_a_key_given_twice_in_a_file_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError):
        read(config=tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("x.toml", "limit = \n", "not valid TOML"),
        ("x.yaml", "limit: [3\n", "not valid YAML"),
        ("x.json", "{", "not valid JSON"),
        ("x.json", "[1]", "top level"),
        ("x.toml", 'limit = "3"\n', "limit"),
        ("x.toml", "limit = true\n", "limit"),
        ("x.toml", 'command = "sft"\n', "is for the command 'sft'"),
        ("x.toml", "[eval]\nlimit = 3\n", "unknown option 'eval'"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        read(config=tmp_path / name)
    assert says in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_names_the_nearest_and_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'eval-tiny'"):
        read(config="eval-tyni")
    with pytest.raises(ConfigError, match=r"cannot read the config file .*gone\.toml"):
        read(config=tmp_path / "gone.toml")


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_shipped_preset_resolves_and_describes_itself(name: str) -> None:
    table = presets()[name]
    classes = {"eval": EvalConfig, "data prep": DataPrepConfig, "sft": SftConfig}
    classes |= {"grpo": GrpoConfig, "expert-iteration": ExpertIterationConfig}
    resolved = resolve(classes[table["command"]], table["command"], config=name, validate=table["command"] != "sft")
    assert table["description"]
    assert f"preset {name}" in resolved.sources.values()


def test_the_record_keeps_nulls_and_says_where_each_value_came_from() -> None:
    record = json.loads(json.dumps(read(limit="3").record()))
    assert record["values"]["eval_path"] is None
    assert record["values"]["limit"] == 3
    assert record["sources"]["limit"] == "flag"
    assert set(record["values"]) == {spec.name for spec in fields(EvalConfig)} == set(record["sources"])


def test_the_docs_table_has_a_row_for_every_option_and_every_option_has_help() -> None:
    table = options_table(EvalConfig)
    for opt in options(EvalConfig):
        assert f"| `{opt.flag}` |" in table
        assert len(opt.help) > 10


def test_an_option_stands_under_the_heading_of_the_class_that_writes_it() -> None:
    sections = {opt.key: opt.section for opt in options(GrpoConfig)}
    assert sections["seed"] == "What every command that leaves a run directory takes"
    assert sections["eval_every"] == "Evaluation while training"
    assert sections["overlap"] == "The steps of grpo"
    assert len(set(sections.values())) == 10
    help = grpo.command.get_help(click.Context(grpo.command))
    places = [help.index(what) for what in ("The steps of grpo:", "--overlap", "How weights are updated:", "--lora-rank")]
    assert places == sorted(places)
    assert help.index("--dry-run") < places[0]
    assert help.index("--eval-every") > help.index("Evaluation while training:")


@given(st.text(), st.text())
def test_no_override_ever_gives_anything_but_a_config_or_one_line(key: str, value: str) -> None:
    for override in (f"{key}={value}", f"limit={value}", f"graders={value}", f"top_p={value}"):
        try:
            read(override)
        except ConfigError as error:
            assert str(error).count("\n") <= override.count("\n") * 2


def test_a_dry_run_names_an_input_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = tmp_path / "gone.jsonl"
    assert main(["eval", "--eval_path", str(gone), "--dry-run"]) == 2
    assert f"eval_path (flag): there is no {gone}" in capsys.readouterr().err
    gone.write_text('{"question": "1 + 1?", "answer": "#### 2"}\n')
    assert main(["eval", "--eval_path", str(gone), "--dry-run"]) == 0
