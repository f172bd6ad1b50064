"""Sessions against a model that notices every wrong place of its cache."""

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fake_model import VOCAB, FakeRunnable, make_tokenizer

from infc.diagnostics import Code, UserError
from infc.runtime import Sampler, SamplingOptions, Session
from infc.target.runnable import OutputKind, Phase

PROMPT = [5, 17, 200, 3, 3, 90, 41, 7, 8, 250, 66, 12, 130, 77, 1, 2, 19, 20, 21, 22]
GREEDY = Sampler(SamplingOptions(temperature=0.0))


def make_session(runnable: FakeRunnable | None = None) -> Session:
    return Session(runnable or FakeRunnable(), make_tokenizer(), threads=2, digest="d" * 64)


def step_by_step(tokens: list[int]) -> list[np.ndarray]:
    """The logits after each token, one decode at a time: what everything else must agree with."""
    session = make_session()
    return [session.decode(token) for token in tokens]


def test_prefill_in_chunks_equals_one_token_at_a_time() -> None:
    session = make_session()
    logits = session.prefill(PROMPT)
    assert session.position == len(PROMPT)
    assert session.tokens == tuple(PROMPT)
    np.testing.assert_array_equal(logits, step_by_step(PROMPT)[-1])


@pytest.mark.parametrize("rows", [1, 4, 6, 50])
def test_all_logits_come_in_pieces_that_the_program_allows(rows: int) -> None:
    runnable = FakeRunnable(logit_rows=rows)
    logits = make_session(runnable).prefill(PROMPT, all_logits=True)
    assert logits.shape == (len(PROMPT), VOCAB)
    np.testing.assert_array_equal(logits, step_by_step(PROMPT))
    assert max(len(call.tokens) for _, call, _ in runnable.calls) == min(rows, 6)


def test_only_the_last_chunk_makes_logits() -> None:
    runnable = FakeRunnable()
    make_session(runnable).prefill(PROMPT)
    made = [
        (len(call.tokens), call.logit_rows.tolist(), call.output) for _, call, _ in runnable.calls
    ]
    assert made == [
        (6, [], OutputKind.LOGITS),
        (6, [], OutputKind.LOGITS),
        (6, [], OutputKind.LOGITS),
        (2, [1], OutputKind.LOGITS),
    ]
    assert {(phase, threads) for phase, _, threads in runnable.calls} == {(Phase.PREFILL, 2)}


def test_prefill_appends() -> None:
    session = make_session()
    session.prefill(np.array(PROMPT[:7]))
    session.decode(PROMPT[7])
    np.testing.assert_array_equal(session.prefill(PROMPT[8:]), step_by_step(PROMPT)[-1])


def test_greedy_next_token_makes_no_logits_after_the_prefill() -> None:
    runnable = FakeRunnable()
    session = make_session(runnable)
    first = int(np.argmax(session.prefill(PROMPT)))
    chosen = [session.next_token(GREEDY) for _ in range(4)]
    assert [call.output for _, call, _ in runnable.calls[-3:]] == [OutputKind.ARGMAX] * 3
    assert session.position == len(PROMPT) + 3
    assert session.chosen == chosen[-1]

    expected, token = [], first
    other = make_session()
    other.prefill(PROMPT)
    for _ in range(4):
        expected.append(token)
        token = int(np.argmax(other.decode(token)))
    assert chosen == expected


def test_sampling_equals_decode_and_sample() -> None:
    options = SamplingOptions(temperature=1.5, repetition_penalty=1.3, seed=4)
    session, other = make_session(), make_session()
    session.prefill(PROMPT)
    sampler, other_sampler = Sampler(options), Sampler(options)
    logits = other.prefill(PROMPT)
    for _ in range(6):
        token = other_sampler.sample(logits, list(other.tokens))
        assert session.next_token(sampler) == token
        logits = other.decode(token)


def test_decode_replaces_a_chosen_token() -> None:
    session = make_session()
    session.prefill(PROMPT)
    session.next_token(GREEDY)
    session.decode(9)
    assert session.tokens == (*PROMPT, 9)
    assert session.chosen is None


def test_returned_logits_cannot_change_what_is_sampled() -> None:
    logits = make_session().prefill(PROMPT)
    with pytest.raises(ValueError, match="read-only"):
        logits[0] = 100.0


def test_truncate_within_the_ring_continues_as_if_never_written() -> None:
    session = make_session()  # window 5, ring of 10
    session.prefill(PROMPT)
    session.truncate(15)  # needs position 11; the ring holds 10 and on
    assert session.tokens == tuple(PROMPT[:15])
    other = [*PROMPT[:15], 99, 98, 97]
    np.testing.assert_array_equal(session.prefill(other[15:]), step_by_step(other)[-1])


def test_every_allowed_truncation_is_right_and_every_other_is_refused() -> None:
    other = [31, 32, 33]
    allowed = []
    for n in range(1, len(PROMPT) + 1):
        session = make_session()
        session.prefill(PROMPT)
        try:
            session.truncate(n)
        except UserError:
            assert session.position == len(PROMPT)
            np.testing.assert_array_equal(
                session.prefill(other), step_by_step([*PROMPT, *other])[-1]
            )
            continue
        allowed.append(n)
        np.testing.assert_array_equal(
            session.prefill(other), step_by_step([*PROMPT[:n], *other])[-1]
        )
    # The ring of 10 holds positions 10 to 19 of 20; a window of 5 needs the 4 before the next.
    assert allowed == list(range(14, 21))


def test_truncating_in_steps_remembers_what_the_ring_has_lost() -> None:
    session = make_session()
    session.prefill(PROMPT)
    session.truncate(14)
    session.decode(4)
    with pytest.raises(UserError, match="can be truncated to 14 or more"):
        session.truncate(13)
    session.truncate(14)
    np.testing.assert_array_equal(session.decode(PROMPT[14]), step_by_step(PROMPT)[14])


def test_truncate_to_zero_and_reset_start_again() -> None:
    session = make_session()
    for forget in (lambda: session.truncate(0), session.reset):
        session.prefill(PROMPT)
        forget()
        assert session.position == 0
        np.testing.assert_array_equal(session.prefill(PROMPT[:8]), step_by_step(PROMPT[:8])[-1])
        session.truncate(4)
        np.testing.assert_array_equal(session.decode(PROMPT[4]), step_by_step(PROMPT[:8])[4])


def test_fork_is_independent() -> None:
    session = make_session()
    session.prefill(PROMPT)
    fork = session.fork()
    session.prefill([1] * 15)
    assert fork.position == len(PROMPT)
    assert fork.next_token(GREEDY) == int(np.argmax(step_by_step(PROMPT)[-1]))
    np.testing.assert_array_equal(fork.prefill([40, 41]), step_by_step([*PROMPT, 40, 41])[-1])
    with pytest.raises(UserError) as error:
        fork.truncate(11)
    assert error.value.code is Code.TRUNCATE


@pytest.mark.parametrize("ahead", ["nothing", "chosen"])
def test_a_restored_session_continues_with_the_same_numbers(tmp_path: Path, ahead: str) -> None:
    session = make_session()
    session.prefill(PROMPT)
    if ahead == "chosen":
        session.next_token(GREEDY)
        session.next_token(GREEDY)
    session.save(tmp_path / "state")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]

    restored = make_session()
    restored.prefill([1, 2, 3])
    restored.restore(tmp_path / "state")
    assert restored.tokens == session.tokens
    assert [restored.next_token(GREEDY) for _ in range(8)] == [
        session.next_token(GREEDY) for _ in range(8)
    ]
    np.testing.assert_array_equal(restored.decode(3), session.decode(3))


def test_a_restored_session_knows_what_its_ring_holds(tmp_path: Path) -> None:
    session = make_session()
    session.prefill(PROMPT)
    session.truncate(16)
    session.save(tmp_path / "state")
    restored = make_session()
    restored.restore(tmp_path / "state")
    with pytest.raises(UserError) as error:
        restored.truncate(13)
    assert error.value.code is Code.TRUNCATE
    restored.truncate(14)
    np.testing.assert_array_equal(restored.decode(PROMPT[14]), step_by_step(PROMPT)[14])


def test_saving_is_deterministic_and_empty_sessions_can_be_saved(tmp_path: Path) -> None:
    session = make_session()
    session.save(tmp_path / "empty")
    session.restore(tmp_path / "empty")
    session.prefill(PROMPT)
    session.save(tmp_path / "a")
    session.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


CANCELLED: list[bool] = []
"""What `interrupt` saw: an assertion in a call that is given up would go unnoticed."""


def interrupt(cancel: threading.Event | None) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    assert cancel is not None
    CANCELLED.append(cancel.wait(5))


def fail(cancel: threading.Event | None) -> None:
    raise RuntimeError("the device is gone")


@pytest.mark.parametrize(
    ("failure", "raised"), [(interrupt, KeyboardInterrupt), (fail, RuntimeError)]
)
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("before", [0, 3, 20])
def test_a_prefill_that_fails_leaves_the_session_as_it_was(
    failure: Callable[[threading.Event | None], None], raised: type[BaseException], before: int
) -> None:
    runnable = FakeRunnable()
    session = make_session(runnable)
    if before:
        session.prefill(PROMPT[:before])
    calls = len(runnable.calls)

    def during(phase: Phase, call: object, cancel: threading.Event | None) -> None:
        # In the fourth chunk: by then the ring has lost everything from before.
        if len(runnable.calls) == calls + 4:
            failure(cancel)

    runnable.during = during
    with pytest.raises(raised):
        session.prefill(list(range(100, 130)))
    runnable.during = lambda *_: None
    assert all(CANCELLED)
    assert session.tokens == tuple(PROMPT[:before])
    if before:
        assert session.next_token(GREEDY) == int(np.argmax(step_by_step(PROMPT[:before])[-1]))
    after = [*PROMPT[:before], 70, 71, 72]
    np.testing.assert_array_equal(session.prefill(after[before:]), step_by_step(after)[-1])


def test_a_prefill_that_fails_leaves_the_way_back_it_found() -> None:
    runnable = FakeRunnable()
    session = make_session(runnable)
    session.prefill(PROMPT)
    runnable.during = lambda phase, call, cancel: fail(cancel) if call.positions[0] > 35 else None
    with pytest.raises(RuntimeError, match="the device is gone"):
        session.prefill([9] * 30)
    runnable.during = lambda *_: None
    session.truncate(14)
    np.testing.assert_array_equal(session.decode(PROMPT[14]), step_by_step(PROMPT)[14])


def test_a_decode_that_fails_leaves_the_session_as_it_was() -> None:
    runnable = FakeRunnable()
    session = make_session(runnable)
    session.prefill(PROMPT)
    token = session.next_token(GREEDY)
    runnable.during = lambda phase, call, cancel: fail(cancel)
    with pytest.raises(RuntimeError, match="the device is gone"):
        session.next_token(GREEDY)
    runnable.during = lambda *_: None
    assert (session.position, session.chosen) == (len(PROMPT), token)
    np.testing.assert_array_equal(session.decode(11), step_by_step([*PROMPT, 11])[-1])


def test_a_sampler_that_fails_leaves_the_session_as_it_was() -> None:
    class Broken(Sampler):
        def sample(self, logits: object, history: object) -> int:
            raise RuntimeError("no choice")

    session = make_session()
    session.prefill(PROMPT)
    broken = Broken(SamplingOptions(temperature=1.0))
    with pytest.raises(RuntimeError, match="no choice"):
        session.prefill_next(list(range(30)), broken)
    with pytest.raises(RuntimeError, match="no choice"):
        session.next_token(broken)
    assert session.tokens == tuple(PROMPT)
    np.testing.assert_array_equal(session.decode(11), step_by_step([*PROMPT, 11])[-1])


def test_forks_in_several_threads_take_turns() -> None:
    runnable = FakeRunnable()
    runnable.during = lambda *_: time.sleep(0.002)
    sessions = [make_session(runnable)]
    sessions += [sessions[0].fork() for _ in range(3)]
    with ThreadPoolExecutor(len(sessions)) as pool:
        results = list(pool.map(lambda session: session.prefill(PROMPT), sessions))
    expected = step_by_step(PROMPT)[-1]
    for logits in results:
        np.testing.assert_array_equal(logits, expected)
