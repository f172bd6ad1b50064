"""Running an artifact: sessions, sampling, tokenizers.

Files, in the order data flows: `tokenizer/` and `chat` make token ids of text; `cached_sequence`
appends them to a KV cache (`rings` knows what the cache still holds, `interrupt` lets Ctrl-C stop a
call); `sampling` chooses tokens; a `session` does both for its user (`token_checks` refuses wrong
ones, `state_file` keeps a session on disk); `stream` makes text of tokens; `generate` joins these;
`measure` times them.
"""

from infc.runtime.generate import Generation
from infc.runtime.sampling import Sampler, SamplingOptions
from infc.runtime.session import Session

__all__ = ["Generation", "Sampler", "SamplingOptions", "Session"]
