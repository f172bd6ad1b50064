"""Any instructions and any image: binary and text give back what was written; damage is refused."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from infc.backends.dataflow import isa
from infc.backends.dataflow.assembler import assemble, disassemble
from infc.backends.dataflow.image import (
    HEADER,
    Image,
    Output,
    Region,
    read_image,
    share_streams,
    write_image,
)
from infc.backends.dataflow.isa import FIELDS, NONE, Instruction, Op, Unit, decode, encode
from infc.backends.dataflow.operations import FORMS, Kind, Operand
from infc.diagnostics import InternalError, UserError

NUMBERS = st.one_of(
    st.integers(-(2**31), 2**31 - 1), st.integers(0, 40), st.sampled_from((-(2**31), 2**31 - 1))
)
SIZES = st.one_of(st.integers(0, 2**31 - 1), st.integers(0, 100))
WORDS = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from((0, 1, 2**32 - 1, 0x7FC00001)))


def fields_of(operand: Operand, draw: st.DrawFn) -> dict[str, int]:
    """Values for the fields of an operand, any that its kind allows."""
    registers = {field: draw(st.integers(0, 31)) for field in operand.fields[1:]}
    fixed = not any(registers.values())
    values = {
        Kind.VALUE: NUMBERS,
        Kind.SIZE: SIZES if fixed else NUMBERS,
        Kind.TARGET: st.integers(1, 31),
        Kind.REGISTER: st.integers(0, 31),
        Kind.NUMBER: NUMBERS,
        Kind.POSITIVE: st.integers(1, 2**31 - 1),
        Kind.STRIDE: SIZES,
        Kind.SEMAPHORE: st.integers(0, 63),
        Kind.SIGNAL: st.one_of(st.integers(0, 63), st.just(NONE)),
        Kind.FLOAT: WORDS,
        Kind.CORE: WORDS,
        Kind.CHIPS: st.builds(isa.chips, st.integers(0, 65535), st.integers(1, 65535)),
        Kind.RECTANGLE: st.builds(
            isa.rectangle, *[st.integers(0, 255)] * 2, *[st.integers(1, 255)] * 2
        ),
    }
    return {operand.fields[0]: draw(values[operand.kind]), **registers}


@st.composite
def instructions(draw: st.DrawFn) -> Instruction:
    """Any instruction that is allowed."""
    op = draw(st.sampled_from(Op))
    form = FORMS[op]
    fields = {
        "op": int(op),
        "fmt": draw(st.integers(0, len(form.formats) - 1)),
        "flags": draw(st.sampled_from((0, form.flags))),
        "origin": draw(WORDS),
    }
    for operand in form.operands:
        fields |= fields_of(operand, draw)
    if op is Op.POST and not fields["flags"]:
        fields["x"] = 0
    if op is Op.MM_Q:
        fields["k"] = 32 * draw(st.integers(1, 1000))
    if op in (Op.V_Q8, Op.V_DQ) and not fields["rn"]:
        fields["n"] = fields["n"] // 32 * 32
    if op is Op.V_DQ and not fields["fmt"] & isa.MINS:
        fields |= {"c": 0, "rc": 0}
    return Instruction(**fields)


@settings(max_examples=60, deadline=None)
@given(st.lists(instructions(), max_size=12))
def test_binary_and_text_give_back_any_program(program: list[Instruction]) -> None:
    data = encode(program)
    assert len(data) == isa.INSTRUCTION_BYTES * len(program)
    assert decode(data) == program
    text = disassemble(program, ["first", "a ; name\nof two lines"])
    assert assemble(text) == program
    assert disassemble(assemble(text), ["first", "a ; name\nof two lines"]) == text


@settings(max_examples=200)
@given(instructions(), st.data())
def test_any_word_in_a_field_is_refused_or_kept(
    instruction: Instruction, data: st.DataObject
) -> None:
    """Nothing is ignored: what is read says all that the bytes say."""
    binary = bytearray(encode([instruction]))
    at = data.draw(st.integers(0, len(binary) - 1))
    binary[at] = data.draw(st.integers(0, 255))
    try:
        changed = decode(bytes(binary))
    except UserError:
        return
    assert encode(changed) == binary


@given(instructions(), st.sampled_from(FIELDS), st.integers(-(2**40), 2**40))
def test_what_is_written_can_be_read(instruction: Instruction, field: str, value: int) -> None:
    changed = replace(instruction, **{field: value})
    try:
        binary = encode([changed])
    except InternalError:
        return
    assert decode(binary) == [changed]


@st.composite
def images(draw: st.DrawFn) -> Image:
    """Any image that is allowed, of up to twelve cores."""
    chips, rows, cols = (draw(st.integers(1, most)) for most in (3, 2, 2))
    cores = chips * rows * cols
    origins = draw(st.lists(st.text(st.characters(codec="utf-8"), max_size=6), min_size=1))
    programs = {
        unit: draw(st.lists(streams(unit, chips, rows, cols, len(origins)), max_size=3))
        for unit in Unit
    }
    chosen = {
        (core, unit): draw(st.sampled_from([*programs[unit], None]))
        for core in range(cores)
        for unit in Unit
    }
    shared, different = share_streams({key: value for key, value in chosen.items() if value})
    max_logit_rows = draw(st.integers(1, 4))
    return Image(
        chips,
        rows,
        cols,
        sram_bytes=1 << draw(st.integers(12, 30)),
        max_tokens=draw(st.integers(max_logit_rows, 1000)),
        max_logit_rows=max_logit_rows,
        streams=shared,
        programs=different,
        origins=origins,
        regions=draw(regions(chips, rows * cols)),
        outputs=draw(outputs(cores)),
    )


@st.composite
def streams(draw: st.DrawFn, unit: Unit, chips: int, rows: int, cols: int, origins: int) -> bytes:
    """A stream of a unit that waits for semaphores of its own."""
    control = {Op.LOOP, Op.ENDLOOP, Op.HALT}
    body = []
    for instruction in draw(st.lists(instructions(), max_size=6)):
        op = Op(instruction.op)
        if unit in FORMS[op].units and op not in control:
            fields = {"origin": instruction.origin % origins}
            if op is Op.WAIT:
                fields["d"] = instruction.d % 16 + 16 * unit
            elif op is Op.POST:
                fields["x"] = instruction.x % (chips * rows * cols)
            elif op is Op.SEND:
                fields["x"] = isa.chips(0, draw(st.integers(1, chips)))
                fields["k"] = isa.rectangle(rows - 1, 0, 1, draw(st.integers(1, cols)))
            body.append(replace(instruction, **fields))
    if draw(st.booleans()):
        body = [Instruction(Op.LOOP, n=3), *body, Instruction(Op.ENDLOOP)]
    return encode([*body, Instruction(Op.HALT)])


@st.composite
def regions(draw: st.DrawFn, chips: int, cores: int) -> list[Region]:
    """Regions one behind the other in some of the memories."""
    found = []
    for place in draw(st.sets(st.integers(0, chips * cores - 1), max_size=3)):
        space = draw(st.sampled_from(("sram", "far0", "far1")))
        core, chip = (place, place // cores) if space == "sram" else (None, place // cores)
        if any((other.core, other.chip, other.space) == (core, chip, space) for other in found):
            continue
        address = 0
        for kind in draw(st.lists(st.sampled_from(("weights", "kv", "table", "zero")), max_size=3)):
            size = draw(st.integers(1, 900))
            offset = 0 if kind == "zero" else draw(st.integers(0, 2**63 - 1))
            found.append(Region(core, chip, space, address, size, kind, offset))
            address += -(-size // 64) * 64
    return found


@st.composite
def outputs(draw: st.DrawFn, cores: int) -> list[Output]:
    """Logits in some parts, and perhaps the best."""
    core = st.integers(0, cores - 1)
    found, column = [], 0
    for columns in draw(st.lists(st.integers(1, 64), max_size=3)):
        found.append(Output("logits", draw(core), 4 * column, 4 * columns, column, columns))
        column += columns
    if draw(st.booleans()):
        found.append(Output("best", draw(core), 2048, 8, 0, 0))
    return found


@settings(max_examples=25, deadline=None)
@given(images())
def test_an_image_is_read_as_it_was_written(image: Image) -> None:
    data = write_image(image)
    assert read_image(data, "any.dfx") == image
    assert write_image(image) == data


def sign(data: bytearray) -> None:
    """Make the checksum right, as a forger would."""
    if len(data) >= HEADER.itemsize:
        place = slice(HEADER.itemsize - 32, HEADER.itemsize)
        data[place] = bytes(32)
        data[place] = hashlib.sha256(data).digest()


def damage(data: bytearray, rng: random.Random) -> None:
    """Change, cut out, repeat or append some of it."""
    at = rng.randrange(len(data))
    length = rng.choice((1, 4, 8, 64))
    kind = rng.randrange(6)
    if kind <= 1:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 2:
        at = at // 4 * 4
        number = rng.choice((0, 1, 255, 2**31 - 1, 2**31, 2**32 - 1))
        data[at : at + 4] = number.to_bytes(4, "little")
    elif kind == 3:
        del data[at : at + length]
    elif kind == 4:
        data[at:at] = data[at : at + length]
    else:
        data += bytes(length)


@settings(max_examples=25, deadline=None)
@given(images(), st.integers(0, 2**32))
def test_damage_is_refused_or_changes_nothing(image: Image, seed: int) -> None:
    """With a right checksum other fields may be right too: then the file says just what is read."""
    original = write_image(image)
    rng = random.Random(seed)
    for number in range(20):
        data = bytearray(original)
        damage(data, rng)
        if number % 4:
            sign(data)
        try:
            found = read_image(bytes(data), "any.dfx")
        except UserError:
            continue
        assert write_image(found) == data
        assert number % 4 or data == original
