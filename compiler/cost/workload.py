"""The expected use of a model; it steers choices and never bounds what may be run."""

from __future__ import annotations

from dataclasses import dataclass, fields

from infc.diagnostics import Code, UserError

_MOST = 10**9
"""Of any count: far beyond every model and deployment, and still quick to reckon with."""


@dataclass(frozen=True)
class Workload:
    """How a model is used.

    Attributes:
        batch: sequences a call of the decode program; with several requests in flight, where more
            than 1, the most that run at a time.
        prompt: tokens of a prompt.
        new_tokens: tokens generated after it.
        context: positions already in the KV cache before the prompt.
        concurrency: requests in flight at a time.
    """

    batch: int = 1
    prompt: int = 512
    new_tokens: int = 128
    context: int = 0
    concurrency: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            least = 0 if field.name in ("context", "new_tokens") else 1
            value = getattr(self, field.name)
            if value < least:
                raise UserError(Code.OPTION, f"{field.name} must be at least {least}, got {value}")
            if value > _MOST:
                raise UserError(Code.OPTION, f"{field.name} must be at most {_MOST}, got {value}")

    @property
    def at_once(self) -> int:
        """Requests that run at a time where there is room."""
        if self.concurrency == 1:
            return self.batch
        return min(self.concurrency, self.batch) if self.batch > 1 else self.concurrency

    @property
    def mean_decode_context(self) -> int:
        """Positions a decode step sees on average, its own included."""
        return self.context + self.prompt + (self.new_tokens + 1) // 2
