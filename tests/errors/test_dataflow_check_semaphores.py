"""What the check of dataflow programs refuses of semaphores: deadlocks, counts, two that wait."""

from __future__ import annotations

import pytest
from checked_programs import passes, refused, text


def test_two_streams_wait_on_one_semaphore() -> None:
    programs = {
        "0 load": "post semaphore=3 count=2",
        "0 vector": "wait semaphore=3 count=1",
        "0 send": "wait semaphore=3 count=1",
    }
    assert refused(programs) == text(
        "expected one stream that waits on semaphore 3 of core 0, got two",
        "op0",
        "core 0, send stream, instruction 0",
        "the other: core 0, vector stream, instruction 0 (wait), from op0",
    )


def test_nobody_posts() -> None:
    programs = {"0 vector": "mov to=r1 a=0\nwait semaphore=5 count=1"}
    assert refused(programs) == text(
        "deadlock: expected 1 post of semaphore 5 of core 0, got 0: the program has 0 posts of it, "
        "and this and earlier waits take 1",
        "op1",
        "core 0, vector stream, instruction 1",
    )


def test_a_count_that_is_too_high() -> None:
    programs = {
        "1 vector": "loop count=3\npost.remote semaphore=5 count=1 core=0\nendloop",
        "0 vector": "wait semaphore=5 count=1\nwait semaphore=5 count=3",
        "0 send": "wait semaphore=6 count=1",
        "2 load": "mov to=r1 a=0",
    }
    programs["0 vector"] += "\npost semaphore=6 count=1"
    # The send unit waits for the vector unit; what that one misses is told.
    assert refused(programs) == text(
        "deadlock: expected 3 posts of semaphore 5 of core 0, got 2: the program has 3 posts of "
        "it, and this and earlier waits take 4",
        "op1",
        "core 0, vector stream, instruction 1",
    )


def test_streams_that_wait_for_one_another() -> None:
    programs = {
        "0 vector": "wait semaphore=0 count=1\npost semaphore=1 count=1",
        "0 matrix": "wait semaphore=1 count=1\npost.remote semaphore=2 count=1 core=3",
        "3 vector": "wait semaphore=2 count=1\npost.remote semaphore=0 count=1 core=0",
    }
    assert refused(programs) == text(
        "deadlock: expected 1 post of semaphore 1 of core 0, got 0: the streams wait for one "
        "another",
        "op0",
        "core 0, matrix stream, instruction 0",
        "it could be posted by core 0, vector stream, instruction 0 (wait), from op0, which waits "
        "for semaphore 0 of core 0",
        "it could be posted by core 3, vector stream, instruction 0 (wait), from op0, which waits "
        "for semaphore 2 of core 3",
    )


def test_a_stream_that_waits_for_itself() -> None:
    assert "the stream itself would post it later" in refused(
        {"0 vector": "wait semaphore=0 count=1\npost semaphore=0 count=1"}
    )


@pytest.mark.parametrize("waited", [True, False])
def test_a_semaphore_that_counts_too_far(waited: bool) -> None:
    programs = {"0 load": "loop count=2\npost semaphore=0 count=65535\nendloop"}
    if waited:
        programs["0 vector"] = "wait semaphore=0 count=65535\nwait semaphore=0 count=65535"
    assert "error[INF9001]: semaphore 0 of core 0 can count beyond 65535" in refused(programs)


def test_many_posts_that_are_taken_in_time() -> None:
    passes(
        {
            "0 load": "loop count=3\npost semaphore=0 count=65535\nwait semaphore=1 count=1\n"
            "endloop",
            "0 vector": "loop count=3\nwait semaphore=0 count=65535\npost semaphore=1 count=1\n"
            "endloop",
        }
    )
