"""Time on the target's own clock, of artifacts whose machine is simulated.

A simulated machine's phases are not run to be timed: what each call takes follows from the programs
and the call's arguments. Of long prompts and long decoding a few calls are timed
that stand for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from infc.driver.prediction import Turns, decode_turns, prefill_turns
from infc.driver.sample_text import sample_tokens
from infc.runtime.cached_sequence import SLOT
from infc.runtime.measure import Watch, arbitrary_tokens, measure
from infc.runtime.session import Session
from infc.runtime.split import SplitRunnable
from infc.runtime.token_checks import check_room
from infc.target.runnable import Call, OutputKind, Phase, Runnable
from infc.target.simulated import SimulatedRunnable

Clock = Literal["wall", "simulated"]


@dataclass(frozen=True)
class PhaseTime:
    """What all tokens of a phase take.

    Attributes:
        clock: `simulated`: the target machine's own time; `wall`: that of this host.
        calls: of the programs.
        timed_calls: those that were timed; the others are taken to be like them.
    """

    seconds: float
    clock: Clock
    calls: int
    timed_calls: int


def simulated_side(runnable: Runnable, phase: Phase) -> SimulatedRunnable | None:
    """What stands behind a phase, where its machine is simulated."""
    side = runnable.sides[phase] if isinstance(runnable, SplitRunnable) else runnable
    return side if isinstance(side, SimulatedRunnable) else None


def time_phases(
    session: Session, prompt_tokens: int, new_tokens: int, watch: Watch | None = None
) -> dict[str, PhaseTime]:
    """Time greedy generation: by running it, but for phases of a simulated machine.

    Args:
        watch: is told what ran, in between.

    Raises:
        UserError: INF5004 where the context is too small for both.
    """
    turns = turns_of(session, prompt_tokens, new_tokens)
    times: dict[str, PhaseTime] = {}
    for phase in Phase:
        side = simulated_side(session.runnable, phase)
        if side is not None:
            times[phase.name.lower()] = _simulate(side, session, phase, turns[phase])
    if len(times) < len(Phase):
        wall = measure(session, sample_tokens(session, prompt_tokens), new_tokens, watch)
        for phase, seconds in zip(Phase, (wall.prefill_seconds, wall.decode_seconds), strict=True):
            calls = _count(turns[phase])
            times.setdefault(phase.name.lower(), PhaseTime(seconds, "wall", calls, calls))
    return times


def turns_of(session: Session, prompt_tokens: int, new_tokens: int) -> dict[Phase, list[Turns]]:
    """The calls of both phases that are timed.

    Raises:
        UserError: INF5004 where the context is too small for both.
    """
    check_room(0, prompt_tokens + new_tokens, session.limits.max_context)
    chunk = session.limits.max_tokens[Phase.PREFILL]
    return {
        Phase.PREFILL: prefill_turns(prompt_tokens, chunk),
        Phase.DECODE: decode_turns(prompt_tokens, new_tokens),
    }


def _count(turns: Sequence[Turns]) -> int:
    return round(sum(turn.calls for turn in turns))


def _simulate(
    side: SimulatedRunnable, session: Session, phase: Phase, turns: Sequence[Turns]
) -> PhaseTime:
    seconds = sum(
        turn.calls * side.simulate(phase, greedy_call(session, phase, turns, turn)).seconds
        for turn in turns
    )
    return PhaseTime(seconds, "simulated", _count(turns), len(turns))


def greedy_call(session: Session, phase: Phase, turns: Sequence[Turns], turn: Turns) -> Call:
    """The call of one of some turns, as a session would make it: of a prompt only the last piece
    is asked for the next token."""
    tokens = arbitrary_tokens(session.vocab_size, max(each.context for each in turns))
    start, count = turn.context - turn.tokens, turn.tokens
    wanted = phase is Phase.DECODE or turn is turns[-1]
    return Call(
        tokens=tokens[start : turn.context],
        row_offsets=np.array([0, count], np.int32),
        slots=np.array([SLOT], np.int32),
        positions=np.arange(start, turn.context, dtype=np.int32),
        logit_rows=np.arange(count - wanted, count, dtype=np.int32),
        output=OutputKind.ARGMAX,
    )
