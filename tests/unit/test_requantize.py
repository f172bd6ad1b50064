"""Which matrices `--quantize` converts, to what, and what it says of the loss."""

import io
from pathlib import Path
from tempfile import TemporaryFile
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from infc.diagnostics import UserError
from infc.frontends.block_encoders import encode
from infc.frontends.requantize import RequantizedSource
from infc.frontends.source import ModelSource, TensorInfo
from infc.ir.storage import STORAGE_TYPES


class Model:
    """A model of one matrix a role, `[6, k]` of a storage type."""

    path, format, tokenizer = Path("model"), "gguf", None

    def __init__(self, k: int = 512, storage: str = "f32", vocabulary: str = "f32") -> None:
        names = {"embed": "token_embd", "head": "output", "layers.0.q": "q"}
        self.config = SimpleNamespace(weights={**names, "final_norm": "norm"})
        kinds = {"token_embd": vocabulary, "output": vocabulary, "q": storage}
        self.tensors = {
            name: TensorInfo(name, (6, k), kind, STORAGE_TYPES[kind].size_bytes((6, k)), name)
            for name, kind in kinds.items()
        }
        self.tensors["norm"] = TensorInfo("norm", (k,), "f32", 4 * k, "norm")
        self.reads: list[str] = []

    def data(self, name: str) -> NDArray[np.uint8]:
        self.reads.append(name)
        info = self.tensors[name]
        numbers = np.random.default_rng(len(name)).normal(size=info.shape).astype(np.float32)
        kind = info.storage
        raw = numbers if kind == "f32" else numbers.astype("<f2") if kind == "f16" else None
        return encode(kind, numbers) if raw is None else raw.reshape(-1).view(np.uint8)


def requantized(model: Model, storage: str) -> RequantizedSource:
    return RequantizedSource(cast(ModelSource, model), storage, io.BytesIO())


def kinds(source: RequantizedSource) -> tuple[str, ...]:
    return tuple(source.tensors[name].storage for name in ("token_embd", "output", "q", "norm"))


@pytest.mark.parametrize(
    ("asked", "model", "expected"),
    [
        ("q8_0", Model(), ("q8_0", "q8_0", "q8_0", "f32")),
        ("q6_k", Model(), ("q6_k", "q6_k", "q6_k", "f32")),
        ("q4_k", Model(), ("q6_k", "q6_k", "q4_k", "f32")),
        ("q4_0", Model(), ("q6_k", "q6_k", "q4_0", "f32")),
        # Rows that are no whole number of blocks.
        ("q6_k", Model(k=320), ("q8_0", "q8_0", "q8_0", "f32")),
        ("q4_k", Model(k=320), ("q8_0", "q8_0", "q5_0", "f32")),
        ("q4_0", Model(k=320), ("q8_0", "q8_0", "q4_0", "f32")),
        ("q4_k", Model(k=40), ("f32", "f32", "f32", "f32")),
        # What is quantised already, to fewer bits and to more.
        ("q4_k", Model(storage="q8_0", vocabulary="q8_0"), ("q6_k", "q6_k", "q4_k", "f32")),
        ("q4_k", Model(storage="q4_0", vocabulary="f16"), ("q6_k", "q6_k", "q4_0", "f32")),
        ("q8_0", Model(storage="q4_k", vocabulary="q6_k"), ("q6_k", "q6_k", "q4_k", "f32")),
    ],
)
def test_which_matrices_become_what(asked: str, model: Model, expected: tuple[str, ...]) -> None:
    assert kinds(requantized(model, asked)) == expected


def test_another_type_is_refused() -> None:
    with pytest.raises(UserError) as error:
        requantized(Model(), "q3_k")
    assert str(error.value) == (
        "error[INF5001]: expected --quantize keep, q8_0, q6_k, q5_1, q5_0, q4_k, q4_1, q4_0, "
        "got 'q3_k'\n"
        "   = hint: keep leaves the weights as they are in the model"
    )


def test_each_tensor_is_converted_once_and_its_loss_counted() -> None:
    model = Model(storage="f16")
    done: list[float] = []
    with TemporaryFile() as out:
        source = RequantizedSource(cast(ModelSource, model), "q4_k", out)
        names = ["token_embd", "q", "norm"]
        assert source.convert(names, done.append) == ["token_embd", "q"]
        assert source.convert(names, done.append) == []
        assert model.reads == ["token_embd", "q"]
        assert done == [0.5, 1.0]
        got = source.data("q")
    numbers = model.data("q").view("<f2").astype(np.float32).reshape(6, 512)
    np.testing.assert_array_equal(got, encode("q4_k", numbers))
    lost = STORAGE_TYPES["q4_k"].dequantize(got, (6, 512)) - numbers
    loss = source.losses["q4_k"]
    assert (loss.tensors, loss.numbers, sorted(source.losses)) == (1, 6 * 512, ["q4_k", "q6_k"])
    expected = np.sqrt(np.square(lost).sum() / np.square(numbers).sum())
    assert loss.relative_error == pytest.approx(expected, rel=1e-3)


def test_pieces_change_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[Any] = []
    for numbers in (512, 1 << 20):
        monkeypatch.setattr("infc.frontends.requantize._PIECE_NUMBERS", numbers)
        with TemporaryFile() as out:
            source = RequantizedSource(cast(ModelSource, Model()), "q4_k", out)
            source.convert(["q", "output"], lambda done: None)
            results.append((source.data("q").tobytes(), source.data("output").tobytes()))
    assert results[0] == results[1]
