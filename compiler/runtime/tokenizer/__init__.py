"""Tokenizers: text to token ids and back, from GGUF fields or a Hugging Face folder.

Files, in the order data flows: `gguf` and `huggingface` read a model's description into a
`definition`; `pretokenizers` is the table of regular expressions GGUF files refer to; `bpe` holds
the merge tables and applies them; `added` finds added tokens in text; `pipeline` normalises and
splits text; `storage` writes a definition as files of an artifact; `tokenizer` joins them.
"""

from infc.runtime.tokenizer.tokenizer import Tokenizer

__all__ = ["Tokenizer"]
