"""Generating text: pieces, where it stops, and what the session holds afterwards."""

from statistics import median

import pytest
from fake_model import BOS, EOS, USER, FakeRunnable, ScriptedRunnable, make_tokenizer

from infc.runtime import Session
from infc.runtime.measure import RUNS, measure
from infc.target.runnable import OutputKind, Phase


def scripted(prompt_tokens: int, text: str, template: str | None = None) -> Session:
    runnable = ScriptedRunnable(prompt_tokens, text.encode())
    return Session(runnable, make_tokenizer(template), threads=1)


def test_text_streams_until_the_end_of_the_sequence() -> None:
    session = scripted(3, "hello")
    generation = session.generate("ab", max_new_tokens=50)
    assert list(generation) == ["h", "e", "l", "l", "o"]
    assert (generation.prompt_tokens, generation.new_tokens) == (3, 6)
    assert generation.prefill_seconds > 0.0
    assert generation.decode_seconds > 0.0
    assert session.tokens == (BOS, *b"abhello")
    assert session.chosen == EOS


def test_nothing_runs_before_the_first_piece_is_asked_for() -> None:
    session = scripted(3, "hello")
    generation = session.generate("ab")
    assert session.position == 0
    next(generation)
    assert session.position == 3


def test_text_stops_at_the_number_of_tokens() -> None:
    session = scripted(3, "hello")
    assert "".join(session.generate("ab", max_new_tokens=2)) == "he"
    # The last token was chosen, not appended: no step is spent on it.
    assert session.tokens == (BOS, *b"abh")


def test_text_stops_before_a_stop_text() -> None:
    assert "".join(scripted(3, "one. two. three").generate("ab", stop=[" three", ". t"])) == "one"
    assert "".join(scripted(3, "one. two").generate("ab", stop=". t")) == "one"


def test_characters_of_several_tokens_come_whole() -> None:
    assert list(scripted(3, "a€b").generate("ab")) == ["a", "€", "b"]
    assert list(scripted(3, "a€b").generate("ab", max_new_tokens=2)) == ["a", "\ufffd"]


def test_a_second_prompt_continues_the_text() -> None:
    session = scripted(3, "hello")
    first = "".join(session.generate("ab", max_new_tokens=3))
    assert first == "hel"
    list(session.generate("XY", max_new_tokens=1))
    # The last token of the first text is appended with the prompt, and no second <bos>.
    assert session.tokens == (BOS, *b"abhelXY")


def test_token_ids_are_a_prompt() -> None:
    session = scripted(2, "hi")
    assert "".join(session.generate([7, 8])) == "hi"
    assert session.tokens == (7, 8, *b"hi")


def test_chat_uses_the_template_and_its_own_special_tokens() -> None:
    template = "{{ bos_token }}{% for m in messages %}<user>{{ m.content }}{% endfor %}"
    session = scripted(4, " yes", template)
    assert "".join(session.generate("ab", chat=True)) == " yes"
    assert session.tokens[:4] == (BOS, USER, *b"ab")


def test_a_leading_space_belongs_to_a_text_that_goes_on_but_not_to_an_answer() -> None:
    tokenizer = make_tokenizer("{{ messages[0].content }}", strips_leading_space=True)
    runnable = ScriptedRunnable(3, b" Paris")
    assert "".join(Session(runnable, tokenizer, threads=1).generate("is")) == " Paris"
    runnable = ScriptedRunnable(2, b" Paris")
    session = Session(runnable, tokenizer, threads=1)
    assert "".join(session.generate("is", chat=True)) == "Paris"


def test_the_seed_decides_the_text() -> None:
    def text(seed: int) -> str:
        session = Session(FakeRunnable(), make_tokenizer(), threads=1)
        return "".join(session.generate("ab", max_new_tokens=30, temperature=2.0, seed=seed))

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_greedy_generation_never_makes_logits() -> None:
    runnable = FakeRunnable()
    list(Session(runnable, make_tokenizer(), threads=1).generate("abcdefghi", max_new_tokens=5))
    assert {call.output for _, call, _ in runnable.calls} == {OutputKind.ARGMAX}


@pytest.mark.parametrize("prompt_tokens", [1, 9])
def test_measure_runs_each_phase_as_often_as_it_says(prompt_tokens: int) -> None:
    runnable = FakeRunnable()
    session = Session(runnable, None, threads=3)
    measured = measure(session, list(range(prompt_tokens)), 4)
    assert measured.prefill_seconds > 0.0
    assert measured.decode_seconds > 0.0
    assert session.position == 0
    counted = [(phase, len(call.tokens)) for phase, call, _ in runnable.calls]
    warm_up = [(Phase.PREFILL, min(prompt_tokens, 2)), (Phase.DECODE, 1)]
    assert counted[:2] == warm_up
    prefills = (
        [(Phase.PREFILL, 6), (Phase.PREFILL, 3)] if prompt_tokens == 9 else [(Phase.PREFILL, 1)]
    )
    assert counted[2:] == [*prefills, *[(Phase.DECODE, 1)] * 4] * RUNS


def test_measure_says_what_passed_in_between() -> None:
    events: list[tuple[Phase | None, float]] = []

    class Notes:
        def begin(self) -> None:
            events.append((None, 0.0))

        def passed(self, phase: Phase, seconds: float) -> None:
            events.append((phase, seconds))

    measured = measure(Session(FakeRunnable(), None, threads=1), [1, 2, 3], 4, Notes())
    run = [None, Phase.PREFILL, *[Phase.DECODE] * 4]
    assert [phase for phase, _ in events] == run * RUNS
    runs = [events[first : first + len(run)] for first in range(0, len(events), len(run))]
    assert measured.prefill_seconds == median(each[1][1] for each in runs)
    assert measured.decode_seconds == median(sum(s for _, s in each[2:]) for each in runs)
