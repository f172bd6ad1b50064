"""The pre-tokenizers that GGUF files name in `tokenizer.ggml.pre`.

Each name stands for the regular expressions of the original model's tokenizer.json; the set of
names is llama.cpp's (ggml-org/llama.cpp, `llama_vocab::impl::load`). Expressions are applied one
after the other, each isolating its matches. As in llama.cpp, Unicode normalisation of the original
(NFC for Qwen) is not part of a GGUF tokenizer.

Ids equal llama.cpp's, but for two things: its `tekken` leaves out combining marks, which the
model's own expression counts as letters; and characters that are new in Unicode have the category
of the `tokenizers` library here.
"""

from __future__ import annotations

from dataclasses import dataclass

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _words_and_digits(digits: str) -> str:
    return (
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
    )


_LLAMA3 = _words_and_digits(r"\p{N}{1,3}")
_QWEN2 = _words_and_digits(r"\p{N}")
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
    rf"|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)


@dataclass(frozen=True)
class PreTokenizer:
    """One entry: its expressions, and the defaults that come with the name.

    Attributes:
        expressions: in the syntax of Oniguruma, as tokenizer.json writes them.
        whole_words: a word that is a token is taken whole.
        add_bos: where the file does not say.
    """

    expressions: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False

    def describe(self) -> object:
        """As the `pre_tokenizer` of a tokenizer.json."""
        splits: list[object] = [
            {
                "type": "Split",
                "pattern": {"Regex": expression},
                "behavior": "Isolated",
                "invert": False,
            }
            for expression in self.expressions
        ]
        byte_level = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        }
        return {"type": "Sequence", "pretokenizers": [*splits, byte_level]}


_LLAMA3_ENTRY = PreTokenizer((_LLAMA3,), whole_words=True, add_bos=True)
_QWEN2_ENTRY = PreTokenizer((_QWEN2,))
_GPT2_ENTRY = PreTokenizer((_GPT2,))
_DIGITS_ENTRY = PreTokenizer((r"\p{N}", _GPT2))

PRE_TOKENIZERS = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "llama3": _LLAMA3_ENTRY,
    "llama-v3": _LLAMA3_ENTRY,
    "llama-bpe": _LLAMA3_ENTRY,
    "falcon3": _LLAMA3_ENTRY,
    "pixtral": _LLAMA3_ENTRY,
    "smaug-bpe": PreTokenizer((_LLAMA3,)),
    "dbrx": PreTokenizer((_LLAMA3,)),
    "chatglm-bpe": PreTokenizer((_LLAMA3,)),
    "qwen2": _QWEN2_ENTRY,
    "deepseek-r1-qwen": _QWEN2_ENTRY,
    "megrez": _QWEN2_ENTRY,
    "stablelm2": _QWEN2_ENTRY,
    "gpt-2": _GPT2_ENTRY,
    "mpt": _GPT2_ENTRY,
    "olmo": _GPT2_ENTRY,
    "phi-2": _GPT2_ENTRY,
    "smollm": _DIGITS_ENTRY,
    "starcoder": _DIGITS_ENTRY,
    "refact": _DIGITS_ENTRY,
    "command-r": _DIGITS_ENTRY,
    "tekken": PreTokenizer((_TEKKEN,), whole_words=True, add_bos=True),
    "deepseek-coder": PreTokenizer(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")
    ),
    "deepseek-v3": PreTokenizer((r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3)),
}
