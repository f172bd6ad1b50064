"""The dataflow machine's instructions, assembly and images: the format as it is documented."""

from __future__ import annotations

import hashlib
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from infc.backends.dataflow import isa
from infc.backends.dataflow.assembler import assemble, disassemble
from infc.backends.dataflow.image import (
    HEADER,
    OUTPUT,
    REGION,
    Image,
    Output,
    Region,
    read_image,
    share_streams,
    write_image,
)
from infc.backends.dataflow.isa import (
    FIELDS,
    NONE,
    Instruction,
    Op,
    Unit,
    decode,
    decode_table,
    decode_tables,
    encode,
    encode_tables,
)
from infc.backends.dataflow.operations import FORMS, Form, Kind
from infc.backends.dataflow.validity import find_stream_problem
from infc.diagnostics import InternalError, UserError

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "dataflow.md"

OPCODES = {
    "HALT": 0x01, "LOOP": 0x02, "ENDLOOP": 0x03, "MOV": 0x04, "ADD": 0x05, "MUL": 0x06,
    "DIV": 0x07, "MOD": 0x08, "MIN": 0x09, "MAX": 0x0A, "WRAP": 0x0B, "ARG": 0x0C, "WAIT": 0x0D,
    "POST": 0x0E, "LOAD": 0x20, "STORE": 0x30, "SEND": 0x31, "MM_Q": 0x40, "MM_F": 0x41,
    "V_BIN": 0x50, "V_BINS": 0x51, "V_IMM": 0x52, "V_UN": 0x53, "V_RED": 0x54, "V_CVT": 0x55,
    "V_Q8": 0x56, "V_DQ": 0x57, "V_ROPE": 0x58, "V_FILL": 0x59, "V_ARGMAX": 0x5A, "V_MERGE": 0x5B,
}  # fmt: skip


def test_opcodes_are_part_of_the_format() -> None:
    assert {op.name: int(op) for op in Op} == OPCODES


def test_the_binary_form_of_an_instruction_is_the_documented_one() -> None:
    instruction = Instruction(
        Op.MM_F, fmt=1, flags=isa.ACC, origin=0x01020304, rd=1, ra=2, rb=0, rc=4, rn=5, rm=6,
        signal=7, d=-8, a=-9, c=10, n=-11, m=-12, k=13, stride_d=14, stride_a=15, stride_b=16,
        stride_c=17,
    )  # fmt: skip
    words = struct.pack("<4BI8B6iI4iI", 0x41, 1, 1, 0, 0x01020304, 1, 2, 0, 4, 5, 6, 7, 255,
                        -8, -9, 0, 10, -11, -12, 13, 14, 15, 16, 17, 0)  # fmt: skip
    assert encode([instruction]) == words
    assert len(words) == isa.INSTRUCTION_BYTES
    assert decode(words) == [instruction]


def test_a_table_has_a_column_for_each_field() -> None:
    program = assemble("wait semaphore=63 count=r31-5 @9\nv_fill d=4 x=-1.5 n=8 signal=3\nhalt")
    table = decode_table(encode(program))
    assert table.dtype == np.int64
    assert table.shape == (3, len(FIELDS))
    for column, field in enumerate(FIELDS):
        assert getattr(isa, f"F_{field.upper()}") == column
        assert table[:, column].tolist() == [getattr(i, field) for i in program]


def test_many_programs_at_once_are_what_each_is_alone() -> None:
    texts = ("mov to=r1 a=r2-3\nhalt", "halt", "wait semaphore=63 count=r31-5 @9\nhalt")
    programs = [encode(assemble(text)) for text in texts]
    tables = [decode_table(program) for program in programs]
    for together, alone in zip(decode_tables(programs), tables, strict=True):
        np.testing.assert_array_equal(together, alone)
    assert encode_tables(tables) == programs
    assert decode_tables([]) == []
    tables[1][0, FIELDS.index("d")] = 7
    with pytest.raises(InternalError, match="instruction 2 cannot be encoded: halt: expected 0"):
        encode_tables(tables)
    with pytest.raises(UserError, match="expected instructions of 64 bytes, got 32 bytes"):
        decode_tables([programs[0][:32], programs[0][32:]])


def test_assembly_reads_what_it_says() -> None:
    text = """
        ; a comment, and an empty line

        loop count=r3+2
          mm_q.q4g16m.acc k=0x40 n=64 m=r2 d=r1-4 a=0 b=512 c=4096 stride_a=64 signal=5 @12 ; last
        endloop
        send d=0 a=8 m=1 n=64 chips=1-2 cores=0-0,3-254 signal=1 signal_local=2
        post.remote semaphore=4 count=1 core=0
        v_imm.sub d=0 a=0 x=bits:0x7fc00001 n=1
        halt"""
    assert assemble(text) == [
        Instruction(Op.LOOP, rn=3, n=2),
        Instruction(
            Op.MM_Q, fmt=7, flags=isa.ACC, origin=12, rd=1, rm=2, signal=5, d=-4, b=512, c=4096,
            n=64, k=64, stride_a=64,
        ),
        Instruction(Op.ENDLOOP),
        Instruction(
            Op.SEND, a=8, m=1, n=64, x=isa.chips(1, 2), k=isa.rectangle(0, 3, 1, 252), signal=1,
            signal_local=2,
        ),
        Instruction(Op.POST, flags=isa.REMOTE, d=4, n=1, x=0),
        Instruction(Op.V_IMM, fmt=isa.Binary.SUB, n=1, x=0x7FC00001),
        Instruction(Op.HALT),
    ]  # fmt: skip


def test_disassembly_is_indented_and_says_where_things_come_from() -> None:
    origins = ["", "layer 0: attn_q", "layer 0: attn_k"]
    program = [
        Instruction(Op.LOOP, n=4, origin=1),
        Instruction(Op.MOV, rd=1, ra=2, a=-3, origin=1),
        Instruction(Op.LOOP, rn=1, origin=2),
        Instruction(Op.V_FILL, d=4, x=isa.float_bits(0.1), n=8, origin=2),
        Instruction(Op.ENDLOOP, origin=2),
        Instruction(Op.ENDLOOP, origin=7),
        Instruction(Op.HALT),
    ]
    assert disassemble(program, origins).splitlines() == [
        "loop count=4 @1  ; layer 0: attn_q",
        "  mov to=r1 a=r2-3 @1",
        "  loop count=r1 @2  ; layer 0: attn_k",
        "    v_fill d=4 x=0.1 n=8 @2",
        "  endloop @2",
        "endloop @7",
        "halt",
    ]


@pytest.mark.parametrize(
    ("text", "unit", "message"),
    [
        ("", Unit.LOAD, "expected halt at the end, got no instruction"),
        ("endloop\nloop count=1\nhalt", Unit.LOAD, "expected a loop before endloop, got none"),
        ("loop count=1\nhalt", Unit.LOAD, "expected endloop for every loop, got 1 too few"),
        ("halt\nhalt", Unit.LOAD, "expected halt at the end and nowhere else"),
        ("loop count=1\nendloop", Unit.SEND, "expected halt at the end and nowhere else"),
        ("v_merge d=0 a=8\nhalt", Unit.SEND, "expected an operation of the send unit, got v_merge"),
        (
            "loop count=2\n" * 9 + "endloop\n" * 9 + "halt",
            Unit.MATRIX,
            "expected at most 8 loops in one another, got more",
        ),
    ],
)
def test_what_is_no_stream(text: str, unit: Unit, message: str) -> None:
    problem = find_stream_problem(decode_table(encode(assemble(text))), unit)
    assert problem is not None
    assert problem.message == message


def test_encode_refuses_what_has_no_binary_form() -> None:
    with pytest.raises(InternalError, match="instruction 1 cannot be encoded: mov: expected 1 to"):
        encode([Instruction(Op.HALT), Instruction(Op.MOV)])


def small_image(**changes: object) -> Image:
    """Eight cores with two programs, regions and outputs."""
    send = encode(assemble("send d=0 a=0 m=1 n=64 chips=0-1 cores=0-1,0-1 signal=3 @1\nhalt"))
    wait = encode(assemble("wait semaphore=3 count=1\nhalt"))
    both = {Unit.MATRIX: wait, Unit.SEND: send}
    streams, programs = share_streams({(c, u): both[u] for c in range(8) for u in both})
    fields: dict[str, object] = {
        "chips": 2,
        "rows": 2,
        "cols": 2,
        "sram_bytes": 4096,
        "max_tokens": 16,
        "max_logit_rows": 2,
        "streams": streams,
        "programs": programs,
        "origins": ["", "layer 0: attn_q"],
        "regions": [
            Region(5, 1, "sram", 64, 64, "weights", 128),
            Region(None, 1, "far0", 64, 64, "kv", 0),
        ],
        "outputs": [
            Output("logits", 0, 1024, 64, 0, 16),
            Output("logits", 7, 1024, 64, 16, 8),
            Output("best", 7, 2048, 8, 0, 0),
        ],
    }
    return Image(**{**fields, **changes})  # type: ignore[arg-type]


def test_an_image_is_the_documented_file() -> None:
    image = small_image()
    data = write_image(image)
    counts = struct.unpack_from("<14I", data, 8)
    assert data[:8] == b"\x89DFX\r\n\x1a\n"
    # halt is in both programs and stored once.
    assert counts == (1, 2, 2, 2, 4096, 16, 2, 3, 2, 4, 2, 15, 2, 3)
    assert struct.unpack_from("<Q", data, 64) == (len(data),)
    assert data[72:104] == hashlib.sha256(data[:72] + bytes(32) + data[104:]).digest()
    instructions, starts, entries = 104, 104 + 3 * 64, 104 + 3 * 64 + 16
    assert data[instructions:starts] == image.programs[0] + image.programs[1][:64]
    assert struct.unpack_from("<3I", data, starts) == (0, 2, 4)
    assert struct.unpack_from("<4I", data, entries) == (0, 1, 2, 1)
    assert struct.unpack_from("<8I", data, entries + 16) == (NO, 0, NO, 1) * 2
    assert read_image(data, "small.dfx") == image


NO = 0xFFFFFFFF


def test_the_size_of_the_records() -> None:
    assert (HEADER.itemsize, REGION.itemsize, OUTPUT.itemsize) == (104, 40, 32)


def test_programs_that_cores_share_are_stored_once() -> None:
    """A core more costs 16 bytes, and an instruction that other programs have costs 4."""
    body = assemble("v_fill d=0 x=0.0 n=8\n" * 100 + "halt")

    def size(chips: int, programs: int) -> int:
        some = [encode([Instruction(Op.V_FILL, n=1000 + i), *body]) for i in range(programs)]
        streams = {(core, Unit.VECTOR): some[core % programs] for core in range(chips * 1000)}
        shared, different = share_streams(streams)
        return len(write_image(Image(chips, 50, 20, 64, 1, 1, shared, different, [""], [], [])))

    assert size(2, 1) - size(1, 1) == 1000 * 16
    assert size(1, 101) - size(1, 1) == 100 * (64 + 4 + 4 * 102)


def test_an_empty_image() -> None:
    image = Image(1, 1, 1, 1, 1, 1, {}, [], [], [], [])
    assert read_image(write_image(image), "empty.dfx") == image
    assert image.program(0, Unit.LOAD) is None


def test_streams_and_cores_of_an_image() -> None:
    image = small_image()
    assert image.cores == 8
    assert image.program(3, Unit.SEND) == image.programs[1]
    assert image.program(3, Unit.VECTOR) is None


def described(form: Form, op: Op) -> tuple[str, ...]:
    """What the row of an operation in the document must name."""
    operands = tuple(
        f"{operand.name}" for operand in form.operands if operand.kind is not Kind.SIGNAL
    )
    return f"0x{op:02x}", *operands


@pytest.mark.parametrize("op", list(Op))
def test_the_document_has_every_operation(op: Op) -> None:
    """A row with the opcode, and the names of all operands in assembly."""
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = re.findall(rf"^\| `{FORMS[op].mnemonic}` \|.*$", text, re.MULTILINE)
    assert len(rows) == 1
    for name in described(FORMS[op], op):
        assert f"`{name}`" in rows[0], name


def test_the_document_has_every_format() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for form in FORMS.values():
        for name in form.formats:
            assert not name or f"`{name}`" in text, f"{form.mnemonic}.{name}"


def test_absent_semaphores_are_not_zero() -> None:
    assert Instruction(Op.HALT).signal == Instruction(Op.HALT).signal_local == NONE
