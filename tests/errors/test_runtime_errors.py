"""What a session refuses, word for word."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_model import FakeRunnable, ScriptedRunnable, make_tokenizer

from infc.diagnostics import UserError
from infc.runtime import Sampler, SamplingOptions, Session
from infc.target.runnable import Call, Phase

GREEDY = Sampler(SamplingOptions(temperature=0.0))


def make_session(**limits: int) -> Session:
    return Session(FakeRunnable(**limits), make_tokenizer(), threads=1, digest="a" * 64)


def refused(session: Session, action: Callable[[], object]) -> str:
    """The whole text of a refusal, which must not have moved the session."""
    before = session.tokens
    with pytest.raises(UserError) as error:
        action()
    assert session.tokens == before
    return str(error.value)


def test_threads_that_are_no_number() -> None:
    with pytest.raises(UserError) as error:
        Session(FakeRunnable(), None, threads="2")  # type: ignore[arg-type]
    assert str(error.value) == (
        "error[INF5001]: threads must be 1 to 4, got '2'\n"
        "   = hint: the programs were compiled for at most 4 threads"
    )


def test_threads_out_of_range() -> None:
    with pytest.raises(UserError) as error:
        Session(FakeRunnable(), None, threads=9)
    assert str(error.value) == (
        "error[INF5001]: threads must be 1 to 4, got 9\n"
        "   = hint: the programs were compiled for at most 4 threads"
    )


@pytest.mark.parametrize("token", [259, -1])
def test_token_out_of_range(token: int) -> None:
    session = make_session()
    assert refused(session, lambda: session.prefill([1, 2, token])) == (
        f"error[INF5002]: expected token ids from 0 to 258, got {token} at index 2\n"
        "   = hint: the ids may come from the tokenizer of another model"
    )
    assert refused(session, lambda: session.decode(10**6)).startswith("error[INF5002]")


def test_tokens_of_the_wrong_kind() -> None:
    session = make_session()
    assert refused(session, lambda: session.prefill(np.ones(3))) == (  # type: ignore[arg-type]
        "error[INF5002]: expected a list of integer token ids, got float64 of shape (3,)"
    )
    assert refused(session, lambda: session.prefill(np.ones((1, 2), int))) == (
        "error[INF5002]: expected a list of integer token ids, got int64 of shape (1, 2)"
    )


def test_empty_prompt() -> None:
    session = make_session()
    assert refused(session, lambda: session.prefill([])) == (
        "error[INF5003]: expected at least one token, got an empty prompt\n"
        "   = hint: pass a text or token ids; a model predicts what follows something"
    )


def test_nothing_to_continue() -> None:
    session = make_session()
    text = (
        "error[INF5003]: expected a token to continue from, got none since the session was made, "
        "reset or truncated\n"
        "   = hint: call prefill with the prompt's token ids first"
    )
    assert refused(session, lambda: session.next_token(GREEDY)) == text
    session.prefill([1, 2, 3])
    session.truncate(2)
    assert refused(session, lambda: session.next_token(GREEDY)) == text


def test_context_overflow() -> None:
    session = make_session(max_context=16)
    session.prefill(range(10))
    assert refused(session, lambda: session.prefill(range(7))) == (
        "error[INF5004]: the context holds 16 positions, 17 are needed "
        "(10 in the session and 7 more)\n"
        "   = hint: compile with --max-context 17 or more, or shorten the prompt; reset() starts a "
        "session again"
    )
    session.prefill(range(6))
    assert refused(session, lambda: session.decode(1)).startswith("error[INF5004]")


def test_context_overflow_of_a_generation_is_found_before_it_starts() -> None:
    session = make_session(max_context=16)
    assert refused(session, lambda: session.generate("abc", max_new_tokens=14)) == (
        "error[INF5004]: the context holds 16 positions, 17 are needed (0 in the session, 4 of the "
        "prompt and 13 new)\n"
        "   = hint: ask for fewer new tokens, shorten the prompt, or compile with --max-context 17 "
        "or more"
    )
    list(session.generate("abc", max_new_tokens=13))


def test_two_threads() -> None:
    runnable = FakeRunnable()
    session = Session(runnable, None, threads=1)
    texts: list[str] = []

    def during(phase: Phase, call: Call, cancel: threading.Event | None) -> None:
        with pytest.raises(UserError) as error:
            session.decode(1)
        texts.append(str(error.value))

    runnable.during = during
    session.prefill([1, 2])
    assert texts == [
        "error[INF5005]: the session is in use by another thread\n"
        "   = hint: give each thread its own session: fork() copies one"
    ]
    assert session.position == 2


def test_a_session_moved_while_it_generates() -> None:
    session = Session(ScriptedRunnable(4, b"hello"), make_tokenizer(), threads=1)
    pieces = session.generate("abc", max_new_tokens=20)
    assert next(pieces) == "h"
    session.decode(5)
    assert refused(session, lambda: list(pieces)) == (
        "error[INF5005]: expected the session where the text ended, at position 4, got it changed, "
        "at position 5\n"
        "   = hint: finish or drop the text before using the session, or use a fork() of it"
    )


def test_truncation_beyond_the_ring() -> None:
    session = make_session()
    session.prefill(range(20))
    assert refused(session, lambda: session.truncate(13)) == (
        "error[INF5007]: a session at position 20 can be truncated to 14 or more, or to 0, got 13\n"
        "   |  layer 0: window 5, ring of 10 positions; needs position 9, "
        "the oldest it holds is 10\n"
        "   = hint: fork or save a session before it moves on, or reset it and prefill again"
    )
    assert refused(session, lambda: session.truncate(21)) == (
        "error[INF5007]: expected a length from 0 to the session's 20, got 21"
    )


def test_no_tokenizer() -> None:
    session = Session(FakeRunnable(), None, threads=1)
    assert refused(session, lambda: session.generate("abc")) == (
        "error[INF1101]: the artifact holds no tokenizer\n"
        "   = hint: pass token ids instead of text, or compile a model that has a tokenizer"
    )


def test_generate_options() -> None:
    session = make_session()
    assert refused(session, lambda: session.generate("abc", max_new_tokens=0)) == (
        "error[INF5001]: max_new_tokens must be 1 or more, got 0"
    )
    assert refused(session, lambda: session.generate("abc", chat=True)) == (
        "error[INF1103]: the model has no chat template\n"
        "   = hint: it is probably a base model: leave out chat and pass a text to continue"
    )
    assert refused(session, lambda: session.generate([1], chat=True)) == (
        "error[INF5001]: chat expects the prompt as text, got token ids"
    )
    session.prefill([1, 2])
    assert refused(session, lambda: session.generate("abc", chat=True)) == (
        "error[INF5001]: chat expects a session at position 0, got one at 2\n"
        "   = hint: reset() the session, or pass further turns as token ids of the whole template"
    )


def test_session_files(tmp_path: Path) -> None:
    session = make_session()
    session.prefill([1, 2, 3])
    path = tmp_path / "state"
    assert refused(session, lambda: session.restore(path)) == (
        f"error[INF4001]: no such session file\n  --> {path}"
    )
    session.save(path)
    other = Session(FakeRunnable(), None, threads=1, digest="b" * 64)
    assert refused(other, lambda: other.restore(path)) == (
        "error[INF4004]: expected a session of artifact bbbbbbbbbbbb, got one of aaaaaaaaaaaa\n"
        f"  --> {path}\n"
        "   = hint: load the artifact that the session was saved with"
    )
    missing = tmp_path / "none" / "state"
    assert refused(session, lambda: session.save(missing)) == (
        "error[INF4006]: the session could not be written: No such file or directory\n"
        f"  --> {missing}\n"
        "   = hint: check that the folder exists, may be written and has room"
    )


@pytest.mark.parametrize("cut", [0, 1, 100, -30])
def test_damaged_session_files(tmp_path: Path, cut: int) -> None:
    session = make_session()
    session.prefill([1, 2, 3])
    path = tmp_path / "state"
    session.save(path)
    path.write_bytes(path.read_bytes()[:cut])
    text = refused(session, lambda: session.restore(path))
    assert text.startswith(
        "error[INF4003]: expected a session file that Session.save wrote, got something else or a "
        f"damaged one\n  --> {path}\n   |  reading it failed: "
    )
    assert text.endswith("\n   = hint: save the session again")


def test_a_session_file_with_a_flipped_bit(tmp_path: Path) -> None:
    session = make_session()
    session.prefill(range(20))
    path = tmp_path / "state"
    session.save(path)
    damaged = bytearray(path.read_bytes())
    at = damaged.find(b"keys.1.npy") + 300
    damaged[at] ^= 1
    path.write_bytes(damaged)
    assert refused(session, lambda: session.restore(path)).startswith("error[INF4003]")
