"""What each token of a sequence reads, for people to look at: nothing that is shown here is ever encoded again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from grpo_gsm8k.errors import DataError
from grpo_gsm8k.runs.checkpoints import complete_checkpoints

Decode = Callable[[Sequence[int]], str]

_PART_OF_A_CHARACTER = "\ufffd"


def token_texts(token_ids: Sequence[int], decode: Decode) -> list[str]:
    """Returns the text that each token adds; put together they are the text of all.

    A character that several tokens make stands with the last of them, and the others add "". A token's text may depend on the
    one before (SentencePiece drops a leading space), so tokens are decoded in small overlapping windows.
    """
    texts: list[str] = []
    start = done = 0
    known = ""
    for end in range(1, len(token_ids) + 1):
        text = decode(token_ids[start:end])
        if text.endswith(_PART_OF_A_CHARACTER) and end < len(token_ids) and end - done < 4:  # UTF-8 takes four bytes at most
            texts.append("")
            continue
        texts.append(text[len(known) :])
        start, done = done, end
        known = decode(token_ids[start:done])
    return texts


def run_decoder(run_path: Path) -> Decode | None:
    """Returns how the tokenizer in a run's newest checkpoint decodes, special tokens kept; None where the run holds none.

    Raises: DataError when it is there and cannot be read.
    """
    from tokenizers import Tokenizer

    files = [checkpoint.path / "tokenizer.json" for checkpoint in complete_checkpoints(run_path)]
    there = [file for file in files if file.is_file()]
    if not there:
        return None
    try:
        tokenizer = Tokenizer.from_file(str(there[-1]))
    except Exception as error:  # the library raises a bare Exception for whatever is wrong with the file
        raise DataError(f"{there[-1]} is not a tokenizer: {' '.join(str(error).split())}") from None

    def decode(token_ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(token_ids), skip_special_tokens=False))

    return decode
