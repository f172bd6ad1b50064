"""Types, attributes and text: there and back."""

import pytest

from infc.diagnostics import InternalError
from infc.ir import ops
from infc.ir.attributes import attributes_of, from_attribute, get, to_attribute
from infc.ir.context import context, parse, print_module
from infc.ir.mlir import ir
from infc.ir.types import (
    BufferType,
    KVType,
    TensorType,
    a8_row_bytes,
    is_buffer,
    is_kv,
    is_tensor,
    storage_bytes,
)
from infc.reference import a8


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (TensorType((4, 64), "f32"), "tensor<4x64xf32>"),
        (TensorType((), "i32"), "tensor<i32>"),
        (TensorType(("t", 64), "bf16"), 'tensor<?x64xbf16, ["t", 64]>'),
        (TensorType(("t", "r"), "i8"), 'tensor<?x?xi8, ["t", "r"]>'),
        (TensorType((4, 32), "q4_k"), 'tensor<4x32x!infc.storage<"q4_k">>'),
        (TensorType(("t", 32), "a8"), 'tensor<?x32x!infc.storage<"a8">, ["t", 32]>'),
    ],
)
def test_tensor_types(tensor: TensorType, text: str) -> None:
    with context():
        made = tensor.mlir()
        assert str(made) == text
        assert TensorType.of(ir.Type.parse(text)) == tensor
        assert is_tensor(made)
        assert not is_buffer(made)
        assert not is_kv(made)
        for space in ("arena", "call"):
            buffer = BufferType(tensor, "rows", space)
            assert BufferType.of(buffer.mlir()) == buffer
            assert is_buffer(buffer.mlir())


def test_kv_types() -> None:
    kind = KVType("f16", 2, 64, 528, 512)
    with context():
        text = '!infc.kv<"f16", 2 : i64, 64 : i64, 528 : i64, 512 : i64>'
        assert str(kind.mlir()) == text
        assert KVType.of(ir.Type.parse(text)) == kind
        assert is_kv(kind.mlir())


def test_what_is_no_type_of_ours() -> None:
    with context():
        with pytest.raises(InternalError, match=r"expected an !infc\.kv type, got i32"):
            KVType.of(ir.Type.parse("i32"))
        with pytest.raises(InternalError, match=r"expected an !infc\.buffer type, got i32"):
            BufferType.of(ir.Type.parse("i32"))
        with pytest.raises(InternalError, match=r"dimension 1 of .* has no symbol"):
            TensorType.of(ir.Type.parse("tensor<4x?xf32>"))


def test_bytes() -> None:
    assert TensorType(("t", 64), "f32").size_bytes({"t": 3}) == 3 * 64 * 4
    assert storage_bytes("q8_0", (4, 64)) == 4 * 2 * 34
    assert storage_bytes("a8", (3, 64)) == 3 * a8_row_bytes(64)
    assert [a8_row_bytes(k) for k in (32, 64, 640)] == [a8.a8_row_bytes(k) for k in (32, 64, 640)]


@pytest.mark.parametrize(
    "value", [True, False, 3, -1, 2.5, "text", {}, {"a": [1, "x"], "b": {"c": 0.5}}, [], [1.0, 2]]
)
def test_attributes_there_and_back(value: object) -> None:
    with context():
        back = from_attribute(to_attribute(value))
        assert back == value
        assert type(back) is type(value)


def test_attributes_of_mlir_itself() -> None:
    with context():
        values = {
            "unit": True,
            "array<f32: 1.0, 2.0>": [1.0, 2.0],
            "array<i64: 1, 2>": [1, 2],
            "@name": "name",
        }
        for text, value in values.items():
            assert from_attribute(ir.Attribute.parse(text)) == value
        kind = ir.Type.parse("i32")
        assert from_attribute(ir.TypeAttr.get(kind)) == kind
        attribute = ir.Attribute.parse("dense<1> : tensor<1xi32>")
        assert to_attribute(attribute) is attribute
        with pytest.raises(InternalError, match="no Python value for the attribute dense<1>"):
            from_attribute(attribute)
        with pytest.raises(InternalError, match="no attribute for a set"):
            to_attribute({1})


def test_attributes_of_an_operation() -> None:
    with context():
        module = ir.Module.create()
        with ir.InsertionPoint(module.body):
            op = ops.create("infc.dim", sym_name="t", min=1, max=8)
        assert attributes_of(op) == {"sym_name": "t", "min": 1, "max": 8}
        assert get(op, "max") == 8
        assert get(op, "nothing") is None
        assert get(op, "nothing", 7) == 7


def test_printing_keeps_locations() -> None:
    with context():
        module = ir.Module.create()
        with ir.InsertionPoint(module.body), ir.Location.name("blk.0.attn_q.weight"):
            ops.weight("q", TensorType((2, 32), "q8_0"))
        text = print_module(module)
        assert text.endswith("\n")
        assert 'loc("blk.0.attn_q.weight")' in text
    with context():
        assert print_module(parse(text)) == text
