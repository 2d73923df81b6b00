"""Training examples: JSONL of pairs or chats, and pre-tokenised shards, to `TokenSequence`s and back."""
