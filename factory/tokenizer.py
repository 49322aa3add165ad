"""A CLIP tokenizer of our own: byte-pair encoding learned from the prompts of the training photos."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


def train(prompts: Iterable[str], size: int, length: int) -> CLIPTokenizer:
    """Learn a vocabulary.

    Args:
        prompts: the texts to learn from.
        size: of the vocabulary at most; every byte has a token, so that any prompt can be read.
        length: tokens of a prompt, start and end included.
    """
    merges = _merges(prompts, size)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(c + WORD_END for c in alphabet)]
    tokens += ["".join(pair) for pair in merges]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*tokens, START, END]))}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        Path(folder, "merges.txt").write_text("\n".join(lines) + "\n")
        Path(folder, "tokenizer_config.json").write_text(json.dumps({"model_max_length": length}))
        made: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
        return made


def _merges(prompts: Iterable[str], size: int) -> list[tuple[str, str]]:
    learner = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    left = size - 2 * len(alphabet) - 2
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + left, end_of_word_suffix=WORD_END, show_progress=False
    )
    learner.train_from_iterator(prompts, trainer)
    pairs = json.loads(learner.to_str())["model"]["merges"]
    return [(str(a), str(b)) for a, b in pairs][:left]
