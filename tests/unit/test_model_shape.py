"""Model shapes: sizes from configurations, and what is wrong with a configuration."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle.families import make_family
from oracle.files import write_gguf, write_huggingface

from infc.cost.kernels.queries import Collective, DecodeAttention, Gemm
from infc.cost.model_shape import ModelShape, read_shape, shape_from_config, shape_from_source
from infc.cost.transformer import Rows, Split, check_split, step_kernels
from infc.diagnostics import UserError
from infc.frontends import open_model

CONFIGS = Path(__file__).resolve().parents[2] / "samples" / "configs"
LLAMA = json.loads((CONFIGS / "llama-3.1-8b.json").read_text())
SMALL = LLAMA | {  # Llama 3.2 1B
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
GEMMA = {
    "model_type": "gemma3_text",
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "vocab_size": 262144,
    "sliding_window": 512,
    "max_position_embeddings": 32768,
}


def shape(values: dict[str, Any]) -> ModelShape:
    return shape_from_config(values, "config.json")


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama-3.1-8b", 8.03),
        ("llama-3.1-70b", 70.55),
        ("llama-3.1-405b", 405.85),
        ("qwen3-32b", 32.76),
    ],
)
def test_samples_have_the_published_numbers_of_parameters(name: str, billions: float) -> None:
    assert read_shape(CONFIGS / f"{name}.json").parameters / 1e9 == pytest.approx(
        billions, abs=0.005
    )


def test_a_tied_head_counts_once() -> None:
    assert shape(SMALL).parameters == 1_235_814_400
    assert (
        shape(SMALL | {"tie_word_embeddings": False}).parameters - shape(SMALL).parameters
        == 128256 * 2048
    )


def test_windows_and_norms_of_a_gemma() -> None:
    gemma = shape(GEMMA)
    assert gemma.parameters == 268_098_176
    assert gemma.windows == ((512,) * 5 + (0,)) * 3
    position, rings = gemma.kv_bytes(2048, "bf16")
    assert position == 3 * 2 * 256 * 2
    assert rings == 15 * 512 * 2 * 256 * 2
    assert gemma.kv_bytes(512, "bf16") == (18 * 2 * 256 * 2, 0)


@pytest.mark.parametrize("family", ["mistral", "qwen2", "gemma3"])
def test_files_say_the_same_as_their_configuration(family: str, tmp_path: Path) -> None:
    config, tensors = make_family(family)
    (tmp_path / "folder").mkdir()
    write_huggingface(tmp_path / "folder", config, tensors)
    write_gguf(tmp_path / "model.gguf", config, tensors)
    alone = read_shape(tmp_path / "folder" / "config.json")
    for path in ("folder", "model.gguf"):
        source = open_model(tmp_path / path)
        opened = shape_from_source(source)
        stored = sum(int(np.prod(info.shape)) for info in source.tensors.values())
        source.close()
        unlike = {"name": "", "weights": None}
        assert vars(opened) | unlike == vars(alone) | unlike
        if path == "folder":
            assert alone.parameters == stored


def report(values: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        shape(values)
    return str(caught.value)


def test_a_width_that_heads_do_not_divide() -> None:
    assert report(LLAMA | {"hidden_size": 4100}) == (
        "error[INF1005]: the model's settings are incomplete or contradict one another\n"
        "  --> config.json\n"
        '   - expected a multiple of 32 heads in "hidden_size", got 4100 (config.json)'
    )


def test_missing_keys_are_listed_together() -> None:
    missing = {"vocab_size", "intermediate_size"}
    assert report({key: value for key, value in LLAMA.items() if key not in missing}) == (
        "error[INF1005]: the model's settings are incomplete or contradict one another\n"
        "  --> config.json\n"
        '   - expected a whole number from 1 to 2147483647 in "vocab_size", got nothing '
        "(config.json)\n"
        '   - expected a whole number from 1 to 2147483647 in "intermediate_size", got nothing '
        "(config.json)"
    )


def test_a_mixture_of_experts() -> None:
    assert report(LLAMA | {"model_type": "mixtral", "num_local_experts": 8}) == (
        "error[INF1006]: the model needs what infc does not support\n"
        "  --> config.json\n"
        "   - expected one of the model types gemma2, gemma3, gemma3_text, llama, mistral, qwen2, "
        'qwen3, got "mixtral"\n'
        '   - a mixture of experts ("num_local_experts" is 8)'
    )
    assert '"num_experts" is 128' in report(LLAMA | {"num_experts": 128})


def test_more_layers_than_any_model_has() -> None:
    assert 'expected at most 4096 layers in "num_hidden_layers", got 1000000000' in report(
        LLAMA | {"num_hidden_layers": 10**9}
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "error[INF1001]: cannot read the configuration: No such file or directory"),
        ("{", "error[INF1002]: expected a JSON object, got something else"),
        ("[" * 100_000, "error[INF1002]: expected a JSON object, got something else"),
        ("[1]", "error[INF1002]: expected a JSON object, got something else"),
    ],
)
def test_files_that_hold_no_configuration(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_shape(path)
    assert str(caught.value) == f"{message}\n  --> {path}"


@pytest.mark.parametrize("values", [LLAMA, SMALL, GEMMA], ids=["8b", "1b", "gemma"])
def test_one_token_multiplies_every_matrix_once(values: dict[str, Any]) -> None:
    model = shape(values)
    products = sum(
        count * query.m * query.n * query.k
        for query, count in step_kernels(model, Split(), Rows(1, 1, 10)).items()
        if isinstance(query, Gemm)
    )
    assert products == model.layers * model.matrix_parameters + model.embedding_parameters


@pytest.mark.parametrize("ways", [2, 4, 8])
@pytest.mark.parametrize("rows", [Rows(3, 1, 700), Rows(2, 256, 0)], ids=["decode", "prefill"])
def test_devices_share_operations_and_cache(ways: int, rows: Rows) -> None:
    model = shape(LLAMA)
    whole, part = (
        step_kernels(model, Split(tensor, 1, "fp8", "fp8"), rows) for tensor in (1, ways)
    )

    def operations(kernels: Any, dtype: str) -> int:
        return sum(
            count * query.m * query.n * query.k
            for query, count in kernels.items()
            if isinstance(query, Gemm) and query.dtype == dtype
        )

    assert operations(part, "fp8") * ways == operations(whole, "fp8")
    # The vocabulary divides, too.
    assert operations(part, "bf16") * ways == operations(whole, "bf16")
    heads = {
        kernels: [(query.heads, query.kv_heads) for query in step if hasattr(query, "kv_heads")]
        for kernels, step in (("whole", whole), ("part", part))
    }
    assert heads == {"whole": [(32, 8)], "part": [(32 // ways, 8 // ways)]}
    reduced = {query: count for query, count in part.items() if isinstance(query, Collective)}
    assert reduced == {
        Collective("all-reduce", ways, rows.tokens * 4096 * 2): 2 * 32 + 1,
        Collective("all-gather", ways, rows.batch * 128256 * 2): 1,
    }


def test_more_devices_than_key_heads_repeat_them() -> None:
    kernels = step_kernels(shape(LLAMA), Split(16), Rows(1, 1, 99))
    (attention,) = [query for query in kernels if isinstance(query, DecodeAttention)]
    assert (attention.heads, attention.kv_heads, attention.context) == (2, 1, 100)


def test_stages_send_activations() -> None:
    kernels = step_kernels(shape(LLAMA), Split(2, 4), Rows(5, 1, 99))
    assert kernels[Collective("send", 2, 5 * 4096)] == 3


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            Split(3),
            "expected a tensor parallelism that divides the heads of llama (32), got 3",
        ),
        (
            Split(1, 33),
            "expected a pipeline parallelism of at most the layers of llama (32), got 33",
        ),
        (Split(0), "expected tensor and pipeline parallelism of at least 1, got 0 and 1"),
        (
            Split(dtype="q4_0"),
            "expected a dtype of f32, bf16, f16, fp8, int8, fp4, got q4_0",
        ),
        (
            Split(kv_dtype="int3"),
            "expected a KV dtype of f32, bf16, f16, fp8, int8, fp4, got int3",
        ),
    ],
)
def test_splits_that_cannot_be(split: Split, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_split(shape(LLAMA), split)
    assert str(caught.value) == f"error[INF5001]: {message}"


def test_key_heads_that_devices_can_neither_share_nor_repeat() -> None:
    odd = LLAMA | {"num_attention_heads": 36, "num_key_value_heads": 6, "head_dim": 128}
    with pytest.raises(UserError) as caught:
        check_split(shape(odd | {"intermediate_size": 14400}), Split(4))
    assert str(caught.value) == (
        "error[INF5001]: expected a tensor parallelism that divides the KV heads of llama (6) or "
        "is a multiple of them, got 4"
    )
