"""`infc estimate` of a model file: what it counts is what the file has and what is compiled."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from oracle.families import make_family
from oracle.files import write_gguf
from oracle.scaled_floats import write_scaled_floats

import infc
from infc.cli import main
from infc.cost.kernels.queries import Gemm
from infc.cost.transformer import Rows, Split, step_kernels
from infc.cost.workload import Workload
from infc.diagnostics import UserError
from infc.driver import predict
from infc.driver.estimation import Deployment, Model, Setup, deploy, read_model
from infc.driver.prediction import predict_on
from infc.driver.sensitivity import sensitivity
from infc.ir.storage import STORAGE_TYPES
from infc.target.discovery import find_target
from infc.target.fitted import FittedClass

PROMPT, ANSWER = 40, 24
MIXED = {"down_proj": "Q6_K", "embed_tokens": "Q8_0", "k_proj": "Q5_0"}
EVERY_THREAD = 1000


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers with matrices of four types; the head is the table of q8_0."""
    path = tmp_path_factory.mktemp("mixed") / "mixed.gguf"
    sizes = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 2048, "head_dim": 64}
    config, tensors = make_family("gemma3", num_hidden_layers=2, **sizes)
    write_gguf(path, config, tensors, "Q4_K", others=MIXED)
    return path


def deployed(model: Model, target: str, **changes: object) -> Deployment:
    setup = Setup(Workload(1, PROMPT, ANSWER), **changes)  # type: ignore[arg-type]
    return deploy(model, find_target(target), setup)


@pytest.mark.parametrize("target", ["cpu:x86-64-v3", "cpu:x86-64-amx", "cuda:sm_90a"])
def test_an_estimate_is_the_prediction_of_what_is_compiled(
    mixed: Path, tmp_path: Path, target: str
) -> None:
    artifact = infc.compile(
        mixed,
        target=target,
        output=tmp_path / "mixed.infc",
        prompt_tokens=PROMPT,
        new_tokens=ANSWER,
    )
    predicted = predict(artifact, prompt_tokens=PROMPT, new_tokens=ANSWER, threads=EVERY_THREAD)
    estimate = deployed(read_model(mixed), target).estimate
    assert predicted["prefill"] is not None
    assert predicted["decode"] is not None
    assert estimate.ttft.mid == pytest.approx(predicted["prefill"].seconds, rel=0.03)
    assert estimate.tpot.mid == pytest.approx(predicted["decode"].seconds / ANSWER, rel=0.03)
    assert estimate.bound == predicted["decode"].bound
    packed = artifact.manifest.members["weights/weights.bin"].size_bytes
    assert estimate.memory.weights == packed

    whole = predict(
        artifact,
        prompt_tokens=PROMPT,
        new_tokens=ANSWER,
        threads=EVERY_THREAD,
        output="logits",
    )
    assert whole["decode"] is not None
    more = whole["decode"].bytes - predicted["decode"].bytes
    halved = target != "cuda:sm_90a"
    # All logits need the second plane of nibbles of every row.
    assert more == pytest.approx(halved * ANSWER * 2048 * 256 / 2, rel=0.3)

    # The constants of a measured machine answer in both as well.
    rows = {"operation_cost": 5.0, "byte_operations": 1.5, "call_seconds": 1e-6}
    fitted = FittedClass(constants=rows, low=-0.1, high=0.2)
    measured = find_target(target).model_copy(update={"kernels": {"rows": fitted}})
    again = predict_on(
        artifact, measured, prompt_tokens=PROMPT, new_tokens=ANSWER, threads=EVERY_THREAD
    )
    own = deploy(read_model(mixed), measured, Setup(Workload(1, PROMPT, ANSWER))).estimate
    assert again["decode"] is not None
    assert own.tpot.mid == pytest.approx(again["decode"].seconds / ANSWER, rel=0.03)


def test_a_chip_reads_the_bytes_of_the_file(mixed: Path) -> None:
    model = read_model(mixed)
    weights = model.shape.weights
    assert weights is not None
    assert (weights.dtype, weights.head_dtype, weights.head_type) == ("fp4", "int8", "q8_0")
    block = weights.blocks[0]
    hidden, inner, kv = model.shape.hidden, model.shape.inner, model.shape.kv_width
    size = {name: STORAGE_TYPES[name].size_bytes for name in ("q4_k", "q5_0", "q6_k", "q8_0")}
    assert block.down == size["q6_k"]((hidden, inner))
    assert block.gated == 2 * size["q4_k"]((inner, hidden))
    assert block.queries == (
        size["q4_k"]((model.shape.query_width, hidden))
        + size["q5_0"]((kv, hidden))
        + size["q4_k"]((kv, hidden))
    )
    assert weights.head == weights.embedding == size["q8_0"]((model.shape.vocabulary, hidden))

    split = Split(2, 1, "fp8", head_dtype="int8")
    products = [q for q in step_kernels(model.shape, split, Rows(1, 1, 9)) if isinstance(q, Gemm)]
    assert {(q.dtype, q.weight_bytes) for q in products} == {
        *(("fp8", part // 2) for part in (block.queries, block.output, block.gated, block.down)),
        ("int8", weights.head // 2),
    }


def test_estimates_on_chips_say_what_was_counted(mixed: Path) -> None:
    model = read_model(mixed)
    counted = deployed(model, "nvidia-h100-sxm").estimate
    assert "weights take the bytes of the file, in q8_0, q4_k, q6_k, q5_0" in counted.assumptions
    assert (
        "products run in fp8, that with the head (q8_0) in int8: what is nearest to the weights of "
        "what nvidia-h100-sxm computes in"
    ) in counted.assumptions
    wide = deployed(model, "nvidia-a100").estimate
    assert (
        "products run in int8: what is nearest to the weights of what nvidia-a100 computes in"
    ) in wide.assumptions
    asked = deployed(model, "nvidia-h100-sxm", dtype="bf16").estimate
    assert not any("of the file" in note for note in asked.assumptions)
    assert asked.memory.weights > 2 * counted.memory.weights


@pytest.mark.parametrize(
    ("target", "dtype"),
    [("nvidia-h100-sxm", "fp8"), ("nvidia-a100", "bf16"), ("google-tpu-v5e", "bf16")],
)
def test_floats_of_a_byte_are_multiplied_as_floats(tmp_path: Path, target: str, dtype: str) -> None:
    """In wider ones where a chip has integers of a byte alone; a head of f32 in bf16 where nothing
    is wider. The bytes stay those of the file."""
    config, tensors = make_family("llama2", num_hidden_layers=2)
    write_scaled_floats(tmp_path, config, tensors, "row")
    found = deployed(read_model(tmp_path), target).estimate
    assert found.split.dtype == dtype
    assert found.split.head_dtype == ("bf16" if "tpu" in target else "f32")
    assert "weights take the bytes of the file, in f32, f8_e4m3" in found.assumptions


def test_a_dtype_that_is_asked_for_is_counted_instead_of_the_file(mixed: Path) -> None:
    model = read_model(mixed)
    asked = deployed(model, "cpu:x86-64-v3", dtype="f32").estimate
    assert not any("infc compile" in note for note in asked.assumptions)
    # The table and the head stay in 16 bits.
    matrices = 4 * model.shape.layers * model.shape.matrix_parameters
    assert asked.memory.weights > matrices


def test_a_batch_decodes_with_one_cache_each(mixed: Path) -> None:
    """Weights are read once for all of them, a cache each."""
    model = read_model(mixed)
    target = find_target("cuda:sm_90a")
    alone, four = (
        deploy(model, target, Setup(Workload(batch, 2048, 8))).estimate for batch in (1, 4)
    )
    assert four.ttft.mid == pytest.approx(4 * alone.ttft.mid, rel=0.05)
    assert alone.tpot.mid < four.tpot.mid < 4 * alone.tpot.mid
    assert four.memory.kv_cache == 4 * alone.memory.kv_cache
    assert "prompts are read one after the other" in four.assumptions


@pytest.mark.parametrize(
    ("target", "dtype"),
    [("cpu:x86-64-v3", "int8"), ("cpu:x86-64-amx", "bf16"), ("cuda:sm_90a", "bf16")],
)
def test_programs_say_what_they_multiply_in(mixed: Path, target: str, dtype: str) -> None:
    """Whatever the weights come nearest to."""
    estimate = deployed(read_model(mixed), target).estimate
    assert estimate.split.dtype == dtype
    assert dtype in estimate.dtypes


def test_a_comparison_names_the_caches_of_all_rows(mixed: Path) -> None:
    targets = ("--target", "cpu:x86-64-v3", "--target", "nvidia-h100-sxm")
    done = CliRunner().invoke(main, ["estimate", str(mixed), "--compare", *targets])
    assert done.exit_code == 0, done.output
    assert re.search(r"^mixed, .*, KV cache (f16 or bf16|bf16 or f16)$", done.stdout, re.MULTILINE)


def test_what_programs_wait_for_is_among_what_could_be_better(mixed: Path) -> None:
    rows = {row.figure: row for row in sensitivity(deployed(read_model(mixed), "cuda:sm_90a"))}
    assert rows["barrier"].tpot < 0
    assert "compute.sm.operations.bf16" in rows
    assert "compute.sm.operations.int8" not in rows


def test_what_a_backend_cannot_compile_is_not_estimated_on_it(tmp_path: Path) -> None:
    config, tensors = make_family("gemma3", num_hidden_layers=1, head_dim=24)
    write_gguf(tmp_path / "tiny.gguf", config, tensors)
    with pytest.raises(UserError, match="target cuda:sm_80 cannot compile 1 operation"):
        deployed(read_model(tmp_path / "tiny.gguf"), "cuda:sm_80")
