"""The whole text of what is said about binary programs and assembly that cannot be read."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest

from infc.backends.dataflow import isa
from infc.backends.dataflow.assembler import assemble
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
from infc.backends.dataflow.isa import FIELDS, Unit, decode, encode
from infc.diagnostics import InternalError, UserError

HINT = "   = hint: compile the model again; a program of another version of infc cannot be read"


def streams(**programs: str) -> dict[str, object]:
    """`streams` and `programs` of an image whose core 1 has these."""
    shared, different = share_streams(
        {(1, Unit[name.upper()]): encode(assemble(text)) for name, text in programs.items()}
    )
    return {"streams": shared, "programs": different}


def image(**changes: object) -> Image:
    """Two chips of two cores, a program, and some of everything else."""
    fields: dict[str, object] = {
        "chips": 2,
        "rows": 1,
        "cols": 2,
        "sram_bytes": 4096,
        "max_tokens": 16,
        "max_logit_rows": 2,
        **streams(vector="wait semaphore=3 count=1 @1\nv_fill d=0 x=0.5 n=8\nhalt"),
        "origins": ["", "layer 0: norm"],
        "regions": [
            Region(1, 0, "sram", 64, 64, "weights", 128),
            Region(None, 1, "far0", 64, 64, "kv", 0),
        ],
        "outputs": [
            Output("logits", 0, 1024, 64, 0, 16),
            Output("logits", 3, 1024, 64, 16, 8),
            Output("best", 3, 2048, 8, 0, 0),
        ],
    }
    return Image(**{**fields, **changes})  # type: ignore[arg-type]


DATA = write_image(image())
STARTS = HEADER.itemsize + 3 * isa.INSTRUCTION_BYTES
"""Where the starts of programs are in it."""
OUTPUTS = len(DATA) - 3 * OUTPUT.itemsize
REGIONS = OUTPUTS - 2 * REGION.itemsize


def refused(data: bytes) -> str:
    with pytest.raises(UserError) as caught:
        read_image(data, "decode.dfx")
    return str(caught.value)


def lines(*text: str) -> str:
    return "\n".join(text)


def cannot_be_read(reason: str) -> str:
    return lines(f"error[INF4007]: the program cannot be read: {reason}", "  --> decode.dfx", HINT)


def changed(at: int, value: int, form: str = "<I") -> bytes:
    """The file with another number at a place, and the checksum that belongs to it."""
    data = bytearray(DATA)
    struct.pack_into(form, data, at, value)
    data[72:104] = bytes(32)
    data[72:104] = hashlib.sha256(data).digest()
    return bytes(data)


# ---- damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"GGUF", DATA[:100], b"x" + DATA[1:]])
def test_another_file(data: bytes) -> None:
    assert refused(data) == cannot_be_read(
        "expected a file that begins as a program does, got another one"
    )


def test_a_bit_that_flipped() -> None:
    data = bytearray(DATA)
    data[300] ^= 4
    assert refused(bytes(data)) == cannot_be_read("it is damaged: the checksum does not match")


def test_a_file_that_was_cut() -> None:
    assert refused(DATA[:-5]) == cannot_be_read(f"expected {len(DATA)} bytes, got {len(DATA) - 5}")


def test_another_version() -> None:
    assert refused(changed(8, 2)) == cannot_be_read("expected version 1, got 2")


# ---- a right checksum over wrong contents -------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            changed(36, 2**32 - 1),
            f"expected {len(DATA) + (2**32 - 4) * 64} bytes by the counts of the header, "
            f"got {len(DATA)}",
        ),
        (changed(28, 0), "expected a limit of tokens of 1 to 2147483647, got 0"),
        (changed(32, 17), "expected a limit of logit rows of 1 to 16, got 17"),
        (changed(24, 2**31), "expected SRAM bytes of 1 to 2147483647, got 2147483648"),
        (changed(STARTS + 4, 2), "expected programs in order that take all 3 entries"),
        (changed(STARTS + 8, 1), "expected all 3 instructions in the order of their use"),
        (changed(STARTS + 24 + 24, 1), "expected the program of a stream of 0 to 0, got 1"),
        (changed(STARTS + 24 + 24, 2**32 - 1), "expected a core that runs program 0, got none"),
        (changed(REGIONS + 8, 3, "B"), "expected a memory of a region of 0 to 2, got 3"),
        (changed(REGIONS + 9, 4, "B"), "expected a kind of region of 0 to 3, got 4"),
        (changed(REGIONS + 15, 1, "B"),
         "expected zeros in the unused bytes of a region, got others"),
        (changed(REGIONS + 16, 4033, "<Q"), "expected the size of a region of 1 to 63, got 64"),
        (changed(OUTPUTS, 2, "B"), "expected a kind of output of 0 to 1, got 2"),
        (changed(OUTPUTS + 28, 1), "expected the end of an output of 0 to 0, got 1"),
        (changed(OUTPUTS + 32 + 20, 17), "expected logits from column 16 on, got 17"),
    ],
)  # fmt: skip
def test_a_field_of_the_file(data: bytes, reason: str) -> None:
    assert refused(data) == cannot_be_read(reason)


def test_a_field_of_an_instruction() -> None:
    assert refused(changed(HEADER.itemsize + 16, 64)) == lines(
        "error[INF4007]: wait: expected 0 to 63 in semaphore (d), got 64",
        "  --> decode.dfx: table of instructions: instruction 0",
        HINT,
    )


# ---- what write_image refuses, and read_image with it -------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"chips": 0}, "expected a number of chips of 1 to 65535, got 0"),
        ({"cols": 256}, "expected a number of columns of 1 to 255, got 256"),
        ({"origins": [""]},
         "expected an origin that the image has in instruction 0 of program 0, got another"),
        (streams(send="post.remote semaphore=1 count=1 core=4\nhalt"),
         "expected a core that the image has in instruction 0 of program 0, got another"),
        (streams(send="send d=0 a=0 m=1 n=4 chips=1-2 cores=0-0,0-0\nhalt"),
         "expected chips that the image has in instruction 0 of program 0, got another"),
        (streams(send="send d=0 a=0 m=1 n=4 chips=0-1 cores=0-0,0-2\nhalt"),
         "expected cores of the grid in instruction 0 of program 0, got another"),
        (streams(load="v_fill d=0 x=0.0 n=1\nhalt"),
         "expected an operation of the load unit, got v_fill, in instruction 0 of program 0"),
        (streams(load="loop count=1"),
         "expected endloop for every loop, got 1 too few, in instruction 0 of program 0"),
        (streams(load="wait semaphore=9 count=1\nhalt", send="wait semaphore=9 count=2\nhalt"),
         "expected one stream of core 1 to wait for semaphore 9, got more"),
        ({"streams": {(4, Unit.LOAD): 0}}, "expected the core of a stream of 0 to 3, got 4"),
        ({"programs": image().programs * 2}, "expected different programs, got one twice"),
        ({"regions": [Region(None, 0, "sram", 0, 1, "zero", 0)]},
         "expected a core for a region of SRAM, got none"),
        ({"regions": [Region(2, 0, "sram", 0, 1, "zero", 0)]},
         "expected the core of a region of 0 to 1, got 2"),
        ({"regions": [Region(2, 1, "far0", 0, 1, "zero", 0)]},
         "expected no core for far memory, got 2"),
        ({"regions": [Region(None, 2, "far0", 0, 1, "zero", 0)]},
         "expected the chip of a region of 0 to 1, got 2"),
        ({"regions": [Region(None, 1, "far1", 32, 1, "zero", 0)]},
         "expected a multiple of 64 as far address, got 32"),
        ({"regions": [Region(1, 0, "sram", 0, 64, "zero", 1)]},
         "expected a source offset of zero of 0 to 0, got 1"),
        ({"regions": [Region(1, 0, "sram", at, 64, "kv", 0) for at in (63, 0)]},
         "expected regions of SRAM of core 1 apart, got two that overlap at 63"),
        ({"regions": [Region(None, 1, "far1", 64 * at, 100, "kv", 0) for at in (0, 1)]},
         "expected regions of far1 of chip 1 apart, got two that overlap at 64"),
        ({"outputs": [Output("best", 4, 0, 8, 0, 0)]},
         "expected the core of an output of 0 to 3, got 4"),
        ({"outputs": [Output("best", 0, 2, 8, 0, 0)]},
         "expected a multiple of 4 bytes as address of an output, got 2"),
        ({"outputs": [Output("logits", 0, 0, 60, 0, 16)]},
         "expected bytes of a row of an output of 64 to 2147483647, got 60"),
        ({"outputs": [Output("logits", 0, 3972, 64, 0, 16)]},
         "expected the address of an output of 0 to 3968, got 3972"),
        ({"outputs": [Output("best", 0, at, 8, 0, 0) for at in (0, 64)]},
         "expected one output of the best token, got more"),
    ],
)  # fmt: skip
def test_an_image_that_breaks_a_rule(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(InternalError) as caught:
        write_image(image(**changes))
    assert str(caught.value) == f"error[INF9001]: an image cannot be written: {reason}"


# ---- binary programs alone ----------------------------------------------------------------------


def test_no_whole_instructions() -> None:
    with pytest.raises(UserError) as caught:
        decode(bytes(65), "matrix stream of core 3")
    assert str(caught.value) == lines(
        "error[INF4007]: expected instructions of 64 bytes, got 65 bytes",
        "  --> matrix stream of core 3",
        HINT,
    )


def at_field(field: str) -> Callable[[bytearray, int], None]:
    """Writes a number into a field of the binary form."""
    names = ["op", "fmt", "flags", "zero", "origin", *FIELDS[4:16], "n", "m", "k", *FIELDS[19:]]
    sizes = [1] * 4 + [4] + [1] * 8 + [4] * 12
    start = sum(sizes[: names.index(field)])
    size = sizes[names.index(field)]

    def write(data: bytearray, value: int) -> None:
        data[start : start + size] = value.to_bytes(size, "little", signed=value < 0)

    return write


@pytest.mark.parametrize(
    ("text", "field", "value", "message"),
    [
        ("halt", "op", 0, "expected an opcode, got 0x00"),
        ("halt", "zero", 7, "expected 0 in byte 3, got 7"),
        ("halt", "x", 1, "halt: expected 0 in x, which is not used, got 1"),
        ("halt", "signal", 0, "halt: expected 255 in signal, which is not used, got 0"),
        ("halt", "flags", 1, "halt: expected 0 in flags, got 1"),
        ("v_un.exp d=0 a=0 n=1", "fmt", 9, "v_un: expected 0 to 8 in fmt, got 9"),
        ("v_red.sum d=0 a=0 n=1", "flags", 2, "v_red: expected 0 or 1 in flags, got 2"),
        ("v_red.sum d=0 a=0 n=1", "ra", 32, "v_red: expected 0 to 31 in ra, got 32"),
        ("v_red.sum d=0 a=0 n=1", "n", -1,
         "v_red: expected at least 0 in n without a register, got -1"),
        ("v_merge d=0 a=0", "signal", 64,
         "v_merge: expected 0 to 63 or 255 in signal, got 64"),
        ("mov to=r1 a=0", "rd", 0, "mov: expected 1 to 31 in to (rd), got 0"),
        ("div to=r1 a=r2 by=3", "a", 0, "div: expected at least 1 in by (a), got 0"),
        ("post semaphore=1 count=1", "x", 5,
         "post: expected 0 in core (x), which is not used without the flag REMOTE, got 5"),
        ("load.far0 d=0 a=0 m=1 n=4", "stride_a", -4,
         "load: expected at least 0 in stride_a, got -4"),
        ("send d=0 a=0 m=1 n=4 chips=0-0 cores=0-0,0-0", "x", 3,
         "send: expected at least one chip in chips (x), got 3"),
        ("send d=0 a=0 m=1 n=4 chips=0-0 cores=0-0,0-0", "k", 1 << 24,
         "send: expected at least one row and one column in cores (k), got 16777216"),
        ("mm_q.q8g32 d=0 a=0 b=0 c=0 m=1 n=1 k=32", "k", 48,
         "mm_q: expected a multiple of 32 in k, got 48"),
        ("v_q8 d=0 b=0 a=0 n=32", "n", 33, "v_q8: expected a multiple of 32 in n, got 33"),
        ("v_dq.q4g16m d=0 a=0 b=0 c=0 n=48", "n", 40,
         "v_dq: expected a multiple of the group in n, got 40"),
        ("v_dq.q4g16 d=0 a=0 b=0 n=48", "c", 8,
         "v_dq: expected 0 in c, which is not used without mins, got 8"),
    ],
)  # fmt: skip
def test_a_field_that_is_not_allowed(text: str, field: str, value: int, message: str) -> None:
    data = bytearray(encode(assemble(text)))
    at_field(field)(data, value)
    with pytest.raises(UserError) as caught:
        decode(encode(assemble("halt")) + data)
    assert str(caught.value) == lines(
        f"error[INF4007]: {message}", "  --> program: instruction 1", HINT
    )


def test_a_number_that_no_field_holds() -> None:
    instruction = replace(assemble("mov to=r1 a=0")[0], a=2**31)
    with pytest.raises(InternalError) as caught:
        encode([instruction])
    assert str(caught.value) == (
        "error[INF9001]: instruction 0 cannot be encoded: "
        "mov: expected -2147483648 to 2147483647 in a, got 2147483648"
    )


# ---- assembly -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("v_un d=0 a=0 n=1", 6, "expected a format of v_un (copy, exp, silu, gelu_tanh, tanh, "
         "rsqrt, recip, neg, sqrt), got nothing"),
        ("v_cvt.bf16 d=0", 7, "expected a format of v_cvt (f32_bf16, f32_f16, bf16_f32, f16_f32, "
         "i32_f32), got bf16"),
        ("v_un.exp.acc d=0 a=0 n=1", 10, "expected nothing after v_un, got acc"),
        ("post.acc semaphore=1 count=1", 6, "expected remote after post, got acc"),
        ("wait semaphore=1", 1, "expected wait with count"),
        ("post.remote", 1, "expected post with semaphore, count, core"),
        ("v_dq.q4g32m d=0 a=0 b=0 n=32", 1, "expected v_dq with c"),
        ("halt now", 6, "expected an operand of halt (none), got now"),
        ("mov to=r1 b=2", 11, "expected an operand of mov (to, a), got b"),
        ("mov to=r1 a=1 a=1", 15, "expected a once, got it again"),
        ("halt @1 @1", 9, "expected @ once, got it again"),
        ("halt @one", 6, "expected an origin, like @12, got @one"),
        ("mov to=1 a=1", 8, "expected a register, like r3 as to, got 1"),
        ("mov to=r1 a=", 13,
         "expected a number or a register and a number, like r3+16 as a, got nothing"),
        ("mov to=r1 a=r1*2", 13,
         "expected a number or a register and a number, like r3+16 as a, got r1*2"),
        ("mul to=r1 a=r2 by=r3", 19, "expected a number as by, got r3"),
        ("v_fill d=0 x=1e60 n=1", 14,
         "expected a float32, like 0.5, -inf or bits:0x7fc00000 as x, got 1e60"),
        ("send d=0 a=0 m=1 n=1 chips=1-0 cores=0-0,0-0", 28,
         "expected the first and the last chip, like 0-3 as chips, got 1-0"),
        ("send d=0 a=0 m=1 n=1 chips=0-0 cores=0-0", 38,
         "expected first and last row, first and last column, like 0-1,0-3 as cores, got 0-0"),
        ("  wait count=1 semaphore=64", 16, "wait: expected 0 to 63 in semaphore (d), got 64"),
        ("v_merge d=r32 a=0", 9, "v_merge: expected 0 to 31 in rd, got 32"),
        ("halt @4294967296", 6, "halt: expected 0 to 4294967295 in origin, got 4294967296"),
    ],
)  # fmt: skip
def test_assembly_that_cannot_be_read(text: str, column: int, message: str) -> None:
    with pytest.raises(UserError) as caught:
        assemble(f"halt\n\n{text} ; a comment", "core3.s")
    assert str(caught.value) == lines(f"error[INF4008]: {message}", f"  --> core3.s:3:{column}")


def test_a_misspelt_operation() -> None:
    with pytest.raises(UserError) as caught:
        assemble("wiat semaphore=1 count=1")
    assert str(caught.value) == lines(
        "error[INF4008]: expected an operation, got wiat",
        "  --> assembly:1:1",
        "   = hint: did you mean wait?",
    )
