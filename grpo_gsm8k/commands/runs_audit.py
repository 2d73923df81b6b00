"""`runs audit`: graders side by side over stored completions, and against a person's labels."""

from __future__ import annotations

from pathlib import Path

import click

from grpo_gsm8k.commands.from_config import CONTEXT


@click.command("audit", context_settings=CONTEXT)
@click.argument("run", metavar="RUN|FILE")
@click.option("--label", type=click.Path(path_type=Path), help="JSONL of problem_id, sample_index, correct; kept in the run.")
@click.option("--to-label", "--to_label", type=click.Path(path_type=Path), help="Write the disagreements here, to be labelled.")
@click.option(
    "--num-shown", "--num_shown", type=click.IntRange(min=0), default=10, show_default=True, help="Disagreements shown."
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option(
    "--artifacts-dir", "--artifacts_dir", default="artifacts", show_default=True, help="Folder under which runs/ lies."
)
def command(run: str, label: Path | None, to_label: Path | None, num_shown: int, as_json: bool, artifacts_dir: str) -> None:
    """Grade stored completions again with every grader, without sampling: who agrees, who changed, who is right.

    RUN is a path, a name under runs/, latest, or RUN@STEP; FILE a JSONL of completions: eval/step_N.jsonl,
    rollouts/step_N.jsonl of one turn, or lines of problem_id, gold and completion. Labels stay in the run, in
    audit/labels.jsonl, and are used from then on; the audit made with them, graders' versions included, stays beside them.
    """
    import json

    from grpo_gsm8k.commands import audit
    from grpo_gsm8k.data.jsonl import write_jsonl
    from grpo_gsm8k.errors import ConfigError
    from grpo_gsm8k.runs.audit import FOLDER, given_labels, keep_labels, of_changed_texts, read_labels, read_stored
    from grpo_gsm8k.runs.storage import sealed, write_json

    if to_label is not None and to_label.exists():
        raise ConfigError(f"--to-label {to_label} is there already, perhaps with labels in it; name another file")
    stored = read_stored(run, Path(artifacts_dir))
    labels = {} if stored.run_path is None else read_labels(stored.run_path)
    outlived = of_changed_texts(labels, stored)
    said = []
    if label is not None:
        given, num_empty = given_labels(label, stored)
        changed = sum(labels.get(key, given_now).correct != given_now.correct for key, given_now in given.items())
        labels |= given
        again = {key[:2] for key in given}  # labelled anew, as the text is now
        labels = {key: each for key, each in labels.items() if key not in outlived or key[:2] not in again}
        kept = "not kept: the file is of no run" if stored.run_path is None else "there is none to keep"
        if stored.run_path is not None and labels:
            kept = f"kept in {keep_labels(stored.run_path, labels)}"
        said = [f"{len(given)} labels, {changed} other than before, {num_empty} lines without one; {kept}"]
    found = audit.audit(stored, {key: each.correct for key, each in labels.items()})
    num_left_out = len(of_changed_texts(labels, stored))
    record = {**audit.audit_record(found), "num_labels_of_changed_text": num_left_out}
    if num_left_out:
        which = (
            "label is of a text that has changed and is"
            if num_left_out == 1
            else "labels are of texts that have changed and are"
        )
        said.insert(0, f"{num_left_out} {which} left out")
    if label is not None and stored.run_path is not None:
        name = f"{stored.path.resolve().parent.name}_{stored.path.stem}.json"
        write_json(stored.run_path / FOLDER / name, sealed(record))
    if to_label is not None and not found.disagreements:
        said.append(
            f"{to_label} is not written: judges agree on every completion. Any can be labelled all the same, a line each: "
            '{"problem_id": …, "sample_index": 0, "correct": true}'
        )
    elif to_label is not None:
        write_jsonl(to_label, audit.to_label(found))
        said.append(
            f"{to_label}: {len(found.disagreements)} completions to label: set correct to true or false, then --label it"
        )
    if as_json:
        click.echo(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join([audit.audit_text(found, num_shown), *said]))
