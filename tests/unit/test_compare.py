"""The figures that benchmarks/compare.py derives from its samples."""

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
WORK = {"decode_bytes": 100, "prefill_operations": 40}


@pytest.fixture
def benchmarks(monkeypatch):
    """The scripts import each other by name, as they do when run from their folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


def sample(engine, round_, rate, workload="decode after 1", busy=0.0, **machine):
    return {
        "engine": engine,
        "threads": 2,
        "workload": workload,
        "round": round_,
        "seconds": 1.0,
        "tokens_per_second": rate,
        "others_busy": busy,
        "machine": {"read_bytes_per_s": 1000.0, "int8_operations_per_s": 800.0, **machine},
    }


@pytest.mark.usefixtures("benchmarks")
class TestSummary:
    def test_medians_and_spread(self):
        from summary import summarise

        samples = [sample("a", i, rate) for i, rate in enumerate([10.0, 8.0, 9.0, 1.0, 12.0])]
        [entry] = summarise(samples, "a", WORK)
        assert entry["tokens_per_second"] == 9.0
        assert entry["spread"] == pytest.approx((10.0 - 8.0) / 2 / 9.0)
        assert entry["best_tokens_per_second"] == 12.0

    def test_one_round_has_no_spread(self):
        from summary import spread

        assert spread([3.0]) == 0.0

    def test_ratio_is_of_pairs_and_not_of_medians(self):
        """The machine halves its speed for one round: each pair saw the same machine."""
        from summary import summarise

        first = [sample("a", i, rate) for i, rate in enumerate([20.0, 10.0, 20.0])]
        other = [sample("b", i, rate) for i, rate in enumerate([10.0, 5.0, 2.0])]
        _, entry = summarise(first + other, "a", WORK)
        assert entry["first_over_this"] == 2.0

    def test_ratio_leaves_out_rounds_without_a_pair(self):
        from summary import summarise

        samples = [sample("a", 1, 30.0), sample("b", 0, 1.0), sample("b", 1, 10.0)]
        entries = {entry["engine"]: entry for entry in summarise(samples, "a", WORK)}
        assert entries["b"]["first_over_this"] == 3.0

    def test_shares_are_of_the_probe_beside_the_sample(self):
        from summary import summarise

        samples = [
            sample("a", 0, 9.0, read_bytes_per_s=1000.0),
            sample("a", 1, 4.5, read_bytes_per_s=500.0),
            sample("a", 0, 10.0, "prefill 8", amx_int8_operations_per_s=None),
        ]
        decode, prefill = summarise(samples, "a", WORK)
        assert decode["share_of_read_bytes_per_s"] == pytest.approx(0.9)
        assert prefill["share_of_int8_operations_per_s"] == pytest.approx(0.5)
        assert "share_of_amx_int8_operations_per_s" not in prefill
        assert "share_of_read_bytes_per_s" not in prefill


@pytest.mark.usefixtures("benchmarks")
def test_prompts_differ_by_round_and_begin_alike():
    from compare import prompts

    made = prompts([2, 10, 11, 12, 13], 8, 2)
    assert made == [[2, 10, 11, 12, 13, 10, 11, 12], [2, 12, 13, 10, 11, 12, 13, 10]]


@pytest.mark.usefixtures("benchmarks")
@pytest.mark.parametrize(("own_head", "read"), [(False, 3 * 64 + 8 * 64), (True, 3 * 64 + 4 * 64)])
def test_work_counts_the_head_in_decode_only(tmp_path, own_head, read):
    from compare import work_of

    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((8, 16), np.float32))
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((3, 16), np.float32))
    if own_head:
        writer.add_tensor("output.weight", np.zeros((4, 16), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = {"decode_bytes": read, "prefill_operations": 2 * 3 * 16}
    assert work_of(tmp_path / "m.gguf") == expected
