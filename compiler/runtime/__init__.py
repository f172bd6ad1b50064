"""Running an artifact: sessions, sampling, tokenizers.

Files, in the order data flows: `tokenizer/` and `chat` make token ids of text; `session` appends
them to a KV cache (`token_checks` refuses wrong ones, `rings` knows what the cache still holds,
`interrupt` lets Ctrl-C stop a call, `state_file` keeps a session on disk); `sampling` chooses
tokens; `stream` makes text of them; `generate` joins these; `measure` times them.
"""

from infc.runtime.generate import Generation
from infc.runtime.sampling import Sampler, SamplingOptions
from infc.runtime.session import Session

__all__ = ["Generation", "Sampler", "SamplingOptions", "Session"]
