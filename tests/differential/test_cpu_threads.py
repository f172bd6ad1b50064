"""The threads of a call: more of them than cores, interrupted, cancelled, forked, given back."""

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from small_models import SmallModels, feed, make_call, random_tokens

from infc.backends.cpu.runnable import CpuRunnable
from infc.diagnostics import UserError
from infc.target.runnable import Cancellation, Phase

BUSY = "while True: pass"


def load(small_models: SmallModels) -> CpuRunnable:
    model = small_models.model("gemma2", num_hidden_layers=2)
    cpu = small_models.runnable(model, "cpu")
    assert isinstance(cpu, CpuRunnable)
    return cpu


@pytest.fixture(scope="module")
def cpu(small_models: SmallModels) -> Iterator[CpuRunnable]:
    cpu = load(small_models)
    yield cpu
    cpu.close()


@pytest.fixture
def busy() -> Iterator[None]:
    """Three processes that want a core all the time."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(3)]
    yield
    for other in others:
        other.kill()
        other.wait()


def helpers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("infc-helper-")]


def all_end(threads: list[threading.Thread]) -> bool:
    for thread in threads:
        thread.join(20)
    return not any(thread.is_alive() for thread in threads)


def barrier_state(cpu: CpuRunnable, phase: Phase, threads: int) -> tuple[int, int]:
    """Threads that have arrived and threads that sleep, as the end of the last call left them."""
    words = cpu.arena(phase, threads).bytes[:128].view(np.int32)
    return int(words[0]), int(words[17])


def test_many_threads_on_a_busy_machine_all_arrive(cpu: CpuRunnable, busy: None) -> None:
    """Every barrier of every call has somebody asleep: a lost wake-up would hang."""
    tokens = random_tokens(cpu.vocab_size, 24)
    expected = feed(cpu, cpu.new_kv(), tokens, phase=Phase.DECODE)
    for threads in (8, 3, 16, 2, 8):
        kv = cpu.new_kv()
        got = feed(cpu, kv, tokens, phase=Phase.DECODE, threads=threads)
        np.testing.assert_array_equal(got, expected)
        assert barrier_state(cpu, Phase.DECODE, threads) == (0, 0)


def test_helpers_that_have_gone_to_sleep_are_woken(cpu: CpuRunnable) -> None:
    tokens = random_tokens(cpu.vocab_size, 8)
    kv = cpu.new_kv()
    for at, token in enumerate(tokens):
        feed(cpu, kv, [token], start=at, phase=Phase.DECODE, threads=4)
        time.sleep(0.02)
    got = feed(cpu, kv, [7], start=8, phase=Phase.DECODE, threads=4)
    np.testing.assert_array_equal(got, feed(cpu, cpu.new_kv(), [*tokens, 7])[-1:])


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_a_cancelled_call_leaves_all_threads_ready(cpu: CpuRunnable, threads: int) -> None:
    cancel = Cancellation()
    cancel.set()
    call = make_call([random_tokens(cpu.vocab_size, 16)])
    with pytest.raises(UserError) as error:
        cpu.run(Phase.PREFILL, call, cpu.new_kv(), threads=threads, cancel=cancel)
    assert str(error.value) == "error[INF5006]: the call was cancelled"
    assert barrier_state(cpu, Phase.PREFILL, threads) == (0, 0)
    got = cpu.run(Phase.PREFILL, call, cpu.new_kv(), threads=threads, cancel=Cancellation())
    np.testing.assert_array_equal(
        got, cpu.run(Phase.PREFILL, call, cpu.new_kv(), threads=1, cancel=None)
    )


def test_calls_from_several_threads_take_turns(cpu: CpuRunnable) -> None:
    tokens = random_tokens(cpu.vocab_size, 20)
    expected = feed(cpu, cpu.new_kv(), tokens)

    def work(threads: int) -> np.ndarray:
        return feed(cpu, cpu.new_kv(), tokens, threads=threads)

    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(work, [2, 3, 2, 3, 1, 3]):
            np.testing.assert_array_equal(got, expected)


def test_helpers_end_when_they_are_closed_or_forgotten(small_models: SmallModels) -> None:
    for forget in (CpuRunnable.close, lambda cpu: None):
        before = set(helpers())
        cpu = load(small_models)
        feed(cpu, cpu.new_kv(), [1, 2, 3], threads=4)
        mine = [t for t in helpers() if t not in before]
        assert len(mine) == 3
        forget(cpu)
        del cpu
        gc.collect()
        assert all_end(mine)


def test_a_closed_runnable_can_run_again(small_models: SmallModels) -> None:
    cpu = load(small_models)
    expected = feed(cpu, cpu.new_kv(), [1, 2, 3], threads=2)
    cpu.close()
    np.testing.assert_array_equal(feed(cpu, cpu.new_kv(), [1, 2, 3], threads=2), expected)
    cpu.close()


def test_all_threads_start_or_none(
    small_models: SmallModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = load(small_models)
    before = set(helpers())
    start, started = threading.Thread.start, []

    def limited(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)
        started.append(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", limited)
        with pytest.raises(UserError) as error:
            feed(cpu, cpu.new_kv(), [1, 2, 3], threads=5)
    assert str(error.value) == (
        "error[INF5001]: the system cannot start 5 threads\n   = hint: choose fewer (--threads)"
    )
    assert len(started) == 2
    assert all_end(started)
    assert set(helpers()) <= before
    got = feed(cpu, cpu.new_kv(), [1, 2, 3], threads=2)
    np.testing.assert_array_equal(got, feed(cpu, cpu.new_kv(), [1, 2, 3]))
    cpu.close()


INTERRUPTED = """
import random, signal, sys
import infc
from infc.runtime import Sampler, SamplingOptions

greedy = Sampler(SamplingOptions(temperature=0.0))
session = infc.load(sys.argv[1], threads=2)
session.prefill([5, 6, 7])
expected = [5, 6, 7] + [session.next_token(greedy) for _ in range(40)]

def stop(*_): raise KeyboardInterrupt
signal.signal(signal.SIGALRM, stop)
random.seed(1)
rounds = stops = 0
while rounds < 12:
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0002, 0.004))
        session.reset()
        session.prefill([5, 6, 7])
        while session.position < 42:
            session.next_token(greedy)
            assert session.tokens == tuple(expected[:session.position])
    except KeyboardInterrupt:
        stops += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        at = session.position
        assert session.tokens == tuple(expected[:at])
        if at >= 3:
            while session.position < 42:
                session.next_token(greedy)
            assert session.tokens == tuple(expected[:42]), (at, session.tokens)
    rounds += 1
signal.setitimer(signal.ITIMER_REAL, 0)
print("interrupted" if stops else "never interrupted")
"""


def test_interrupts_at_any_moment_leave_the_session_usable(small_models: SmallModels) -> None:
    artifact = small_models.artifact(small_models.model("gemma2", num_hidden_layers=2), "cpu")
    assert run_script(INTERRUPTED, str(artifact)) == ("interrupted\n", "", 0)


FORKED = """
import os, sys, threading
import numpy as np
import infc

session = infc.load(sys.argv[1], threads=3)
expected = session.prefill([5, 6, 7])
decoded = session.decode(8)
session.reset()
child = os.fork()
same = np.array_equal(session.prefill([5, 6, 7]), expected)
same = same and np.array_equal(session.decode(8), decoded)
if child == 0:
    sys.exit(0 if same else 1)
print(same, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_starts_threads_of_its_own(small_models: SmallModels) -> None:
    """Both processes then end by themselves, helpers asleep and all."""
    artifact = small_models.artifact(small_models.model("gemma2", num_hidden_layers=2), "cpu")
    assert run_script(FORKED, str(artifact)) == ("True 0\n", "", 0)


def run_script(script: str, artifact: str) -> tuple[str, str, int]:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, artifact]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    return done.stdout, done.stderr, done.returncode
