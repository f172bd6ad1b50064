"""Tiny tokenizers for the tiny families: every byte, and a few pairs of letters.

Ids 0 to 2 are the special tokens, 3 to 258 the bytes, and the rest pieces of text.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import gguf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

_PAIRS = re.findall(
    r"\w+",
    """
    th he in er an re on at en nd ti es or te of ed is it al ar st to nt ng se ha as ou io le
    ve co me de hi ri ro ic ne ea ra ce li ch ll be ma si om ur ca el ta la ns di fo ho pe ec
    pr no ct
    """,
)

CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
"""What both kinds of file carry."""


def write_huggingface_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write a byte-level BPE `tokenizer.json` and its companions; specials are named `<|...|>`."""
    specials = ["<|pad|>", "<|begin|>", "<|end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = _PAIRS[: vocab_size - len(specials) - len(alphabet)]
    vocabulary = {piece: i for i, piece in enumerate(specials + alphabet + pairs)}
    merges = [(pair[0], pair[1]) for pair in pairs]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in specials])
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "add_bos_token": True,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=2))
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2))


def add_gguf_tokenizer(writer: gguf.GGUFWriter, vocab_size: int) -> None:
    """Add a SentencePiece-style vocabulary with byte fall-back: `<unk>`, `<s>`, `</s>`."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    fixed = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pairs = _PAIRS[: vocab_size - len(fixed) - len(letters)]
    kinds = [2, 3, 3, *[6] * 256, *[1] * (len(letters) + len(pairs))]
    scores = [0.0] * len(fixed)
    scores += [-100.0] * len(letters) + [-float(rank) for rank in range(len(pairs))]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(fixed + letters + pairs)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(True)
    writer.add_chat_template(CHAT_TEMPLATE)
