"""Write gemma3_golden.json: llama.cpp's token ids of texts.json for the demo model.

Needs llama-cpp-python, which the project does not otherwise use:
`python tests/corpus/make_golden.py MODEL.gguf`. Ids are without special tokens; `parsed` holds
those of the texts that spell special tokens, with these parsed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import llama_cpp

HERE = Path(__file__).parent


def main() -> None:
    """Tokenize all texts."""
    model = llama_cpp.Llama(sys.argv[1], vocab_only=True, verbose=False)
    groups = json.loads((HERE / "texts.json").read_text(encoding="ascii"))

    def encode(text: str, *, special: bool = False) -> list[int]:
        # llama_tokenize takes a length, so that a NUL is text like any other
        return model.tokenize(text.encode("utf-8"), add_bos=False, special=special)

    golden = {
        "llama_cpp_python": llama_cpp.__version__,
        "plain": {name: [encode(text) for text in texts] for name, texts in groups.items()},
        "parsed": [encode(text, special=True) for text in groups["spelled"]],
    }
    text = json.dumps(golden, separators=(",", ":")).replace("]],", "]],\n")
    (HERE / "gemma3_golden.json").write_text(text + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
