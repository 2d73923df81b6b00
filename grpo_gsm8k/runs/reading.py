"""What a damaged file may do to whoever reads it as a whole one, said in one line that names the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from grpo_gsm8k.errors import DataError, HarnessError, InputError
from grpo_gsm8k.runs.manifest import MANIFEST
from grpo_gsm8k.runs.verify import verify_run


@contextmanager
def reading(*run_dirs: Path) -> Iterator[None]:
    """Says in one line which file of the runs read in the body is not what a run writes. Raises: DataError.

    What the harness says itself goes on as it is; for whatever else a damaged value leads to, the runs are verified.
    """
    try:
        yield
    except HarnessError:
        raise
    except Exception as error:  # whatever reads a file as a whole one meets any of them in a damaged one
        raise DataError(
            f"{', '.join(map(str, run_dirs))}: a file is not what a run writes{_blamed(run_dirs)} "
            f"({type(error).__name__}: {error}); see `runs verify`"
        ) from error


def _blamed(run_dirs: tuple[Path, ...]) -> str:
    """Returns the first file that is not as recorded, and what of it; nothing where nothing tells which file it is."""
    for path in run_dirs:
        try:
            found = [problem for problem in verify_run(path).problems if problem.file != MANIFEST]
        except InputError as error:
            return f": {error}"
        if found:
            return f": {path.name}/{found[0].file} {found[0].what}"
    return ""
