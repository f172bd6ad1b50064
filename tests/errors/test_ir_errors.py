"""What is said about IR that does not parse, verify or fit its level: the whole text."""

import pytest

from infc.diagnostics import UserError
from infc.ir.context import context, parse
from infc.ir.levels import Level, check_legality, level_of
from infc.ir.verifier import verify
from infc.pipeline.options import CompileOptions

X = 'tensor<?x64xf32, ["t", 64]>'
V = "tensor<64xf32>"
W = "tensor<32x64xf32>"
I = 'tensor<?xi32, ["t"]>'  # noqa: E741 - reads as the other types do
R = "tensor<8x4x2xf32>"
A = f'!infc.buffer<{V}, "rows", "arena">'
F = '!infc.buffer<tensor<0xi8>, "frame", "arena">'
C = '!infc.kv<"f32", 1 : i64, 64 : i64, 16 : i64, 0 : i64>'


def module(line: str, location: str = "here") -> str:
    """A module with one operation among arguments of every kind."""
    arguments = f"%x: {X}, %v: {V}, %w: {W}, %i: {I}, %r: {R}, %a: {A}, %f: {F}, %c: {C}"
    return (
        'module {\n"infc.dim"() {sym_name = "t", min = 1 : i64, max = 4 : i64} : () -> ()\n'
        f'func.func @f({arguments}) {{\n{line} loc("{location}")\nreturn\n}}\n}}'
    )


def refused(text: str) -> str:
    with context(), pytest.raises(UserError) as caught:
        verify(parse(text, name="dump.mlir"))
    return str(caught.value)


ATTENTION = "heads = {heads}, head_dim = {e}, scale = 1.0 : f32, window = 0 : i64"
RULES = {
    '"infc.dim"() {sym_name = "n", min = 3 : i64, max = 2 : i64} : () -> ()': (
        "infc.dim: expected 0 <= min <= max, got 3 and 2"
    ),
    '"infc.dim"() {sym_name = "n", min = "a", max = 2 : i64} : () -> ()': (
        "infc.dim: expected min to be a whole number, got 'a'"
    ),
    '%0 = "infc.weight"() {source = "w"} : () -> tensor<?x4xf32>': (
        "infc.weight: dimension 0 of tensor<?x4xf32> has no symbol"
    ),
    '%0 = "infc.weight"() {source = "w"} : () -> tensor<?x4xf32, ["t", 4]>': (
        "infc.weight: a weight has no symbolic dimensions"
    ),
    '%0 = "infc.weight"() {source = "w"} : () -> tensor<4x!infc.storage<"q9_9">>': (
        "infc.weight: unknown storage type 'q9_9'"
    ),
    '%0 = "infc.weight"() {source = "w"} : () -> tensor<4x20x!infc.storage<"q8_0">>': (
        "infc.weight: expected rows of a multiple of 32 elements, got 20"
    ),
    f'%0 = "infc.embed"(%i, %w) {{scale = 1.0 : f32}} : ({I}, {W}) -> {V}': (
        "infc.embed: expected result shape ('t', 64), got (64,)"
    ),
    f'%0 = "infc.embed"(%i, %w) {{scale = 1 : i64}} : ({I}, {W}) -> {X}': (
        "infc.embed: expected scale to be a float, got '1'"
    ),
    f'%0 = "infc.rms_norm"(%x, %v) {{eps = 1.0 : f32, offset = 0.0 : f32, head_dim = 24 : i64}}'
    f" : ({X}, {V}) -> {X}": (
        "infc.rms_norm: expected weight shape (24,), got (64,)",
        "infc.rms_norm: expected a multiple of head_dim 24, got 64 columns",
    ),
    f'%0 = "infc.linear"(%x, %v) : ({X}, {V}) -> {X}': (
        "infc.linear: expected operand 1 to have rank 2, got 1"
    ),
    f'%0 = "infc.linear"(%w, %r) : ({W}, {R}) -> {X}': (
        "infc.linear: expected operand 1 to have rank 2, got 3"
    ),
    f'%0 = "infc.linear"(%x, %w, %v) : ({X}, {W}, {V}) -> {X}': (
        "infc.linear: expected result shape ('t', 32), got ('t', 64)",
        "infc.linear: expected bias shape (32,), got (64,)",
    ),
    f'%0 = "infc.rope"(%x, %v, %r) {{head_dim = 6 : i64, interleaved = false}}'
    f" : ({X}, {V}, {R}) -> {X}": (
        "infc.rope: expected rows of operand 1 t, got 64",
        "infc.rope: expected at most 3 pairs, got 4",
    ),
    f'%0 = "infc.rope"(%x, %i, %r) {{head_dim = 64 : i64, interleaved = 0 : i64}}'
    f" : ({X}, {I}, {R}) -> {X}": ("infc.rope: expected interleaved to be true or false, got '0'"),
    f'%0 = "infc.attention"(%x, %x, %x, %i) {{{ATTENTION.format(heads="3 : i64", e="16 : i64")}}}'
    f" : ({X}, {X}, {X}, {I}) -> {X}": (
        "infc.attention: expected columns of q 48, got 64",
        "infc.attention: 3 heads of 16 do not group over 64 key columns",
    ),
    f'%0 = "infc.attention"(%x, %x, %x, %i) {{{ATTENTION.format(heads="3 : i64", e="0 : i64")}}}'
    f" : ({X}, {X}, {X}, {I}) -> {X}": (
        "infc.attention: expected head_dim to be at least 1, got 0"
    ),
    f'%0 = "infc.attention"(%x, %w, %x, %i) {{{ATTENTION.format(heads="1 : i64", e="64 : i64")}}}'
    f" : ({X}, {W}, {X}, {I}) -> {X}": (
        "infc.attention: expected shape of v (32, 64), got ('t', 64)"
    ),
    f'%0 = "infc.activation"(%x) {{kind = "relu"}} : ({X}) -> {X}': (
        "infc.activation: expected kind silu or gelu_tanh, got 'relu'"
    ),
    '%0 = "infc.kv_cache"() {index = 0 : i64} : () -> '
    '!infc.kv<"i8", 1 : i64, 64 : i64, 16 : i64, 0 : i64>': (
        "infc.kv_cache: expected a cache of f32, f16, bf16, int8, got i8"
    ),
    f'%0 = "infc.kv_append"(%c, %r, %v, %i, %i) : ({C}, {R}, {V}, {I}, {I}) -> {C}': (
        "infc.kv_append: expected columns of k 64, got 2"
    ),
    f'%0 = "infc.select_rows"(%x, %i) : ({X}, {I}) -> {W}': (
        "infc.select_rows: expected result shape ('t', 64), got (32, 64)"
    ),
    f'%0 = "infc.quantize"(%x) : ({X}) -> {X}': (
        'infc.quantize: expected result tensor<?x64x!infc.storage<"a8">, ["t", 64]>, '
        'got tensor<?x64xf32, ["t", 64]>'
    ),
    f'%0 = "infc.read"(%a) : ({A}) -> {W}': (
        "infc.read: expected result tensor<64xf32>, got tensor<32x64xf32>"
    ),
    f'"infc.write"(%w, %a) : ({W}, {A}) -> ()': (
        "infc.write: expected value tensor<64xf32>, got tensor<32x64xf32>"
    ),
    f'%0 = "infc.alloc"(%f) {{offset = 32 : i64, size_bytes = -1 : i64}} : ({F}) -> '
    f'!infc.buffer<{V}, "rows", "thread">': (
        "infc.alloc: expected space arena, got thread",
        "infc.alloc: expected an offset that is a multiple of 64, got 32",
        "infc.alloc: expected a size, got -1",
    ),
    f'%0 = "infc.argmax"(%w) : ({W}) -> tensor<?xi32, ["n"]>': (
        "infc.argmax: dimension 'n' is not declared by an infc.dim"
    ),
}


@pytest.mark.parametrize("line", RULES)
def test_each_rule(line: str) -> None:
    expected = RULES[line]
    problems = [expected] if isinstance(expected, str) else list(expected)
    listed = "".join(f'\n   - {problem} (loc("here"))' for problem in problems)
    rules = "1 rule" if len(problems) == 1 else f"{len(problems)} rules"
    assert refused(module(line)) == f"error[INF2002]: the IR breaks {rules}{listed}"


def test_all_problems_in_one_report() -> None:
    text = module('%0 = "infc.weight"() {source = "a"} : () -> tensor<4xi64>', "first")
    second = '%1 = "infc.weight"() {source = "b"} : () -> tensor<4xi16> loc("second")\nreturn'
    assert refused(text.replace("return", second)) == (
        "error[INF2002]: the IR breaks 2 rules\n"
        "   - infc.weight: unknown storage type 'i64' (loc(\"first\"))\n"
        "   - infc.weight: unknown storage type 'i16' (loc(\"second\"))"
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("module {\n  oops\n}", "\"dump.mlir\":2:3): custom op 'oops' is unknown"),
        (
            "module {\n  func.func @f() {\n    return %b : i32\n  }\n}",
            '"dump.mlir":3:12): use of undeclared SSA value name',
        ),
        (
            'module {\n  "infc.nope"() : () -> ()\n}',
            "\"dump.mlir\":2:3): unregistered operation 'infc.nope' found in dialect ('infc')",
        ),
        (
            'module {\n  "infc.dim"() {sym_name = "t", max = 1 : i64} : () -> ()\n}',
            '"dump.mlir":2:3): \'infc.dim\' op attribute "min" is expected but not provided',
        ),
    ],
)
def test_text_that_does_not_parse(text: str, complaint: str) -> None:
    lines = refused(text).splitlines()
    assert lines[:2] == ["error[INF2001]: the IR does not parse", "  --> dump.mlir"]
    assert lines[2].startswith(f"   |  loc({complaint}")
    assert lines[-1] == (
        "   = hint: a dump is parsed as it was printed; undo the edit at the line named above"
    )


@pytest.mark.parametrize("written", ["", 'infc.level = "grpah"', "infc.level = 3 : i64"])
def test_a_module_without_a_level(written: str) -> None:
    got = {"": "", 'infc.level = "grpah"': "grpah"}.get(written, "3 : i64")
    with context(), pytest.raises(UserError) as caught:
        level_of(parse(f"module attributes {{{written}}} {{}}"))
    assert str(caught.value) == (
        "error[INF2001]: expected infc.level to be one of graph, phase, schedule, memory, "
        f"machine, got '{got}'\n"
        "   = hint: only modules that infc dumped carry a level"
    )


def test_operations_at_the_wrong_level() -> None:
    text = module(
        f'%0 = "infc.quantize"(%x) : ({X}) -> tensor<?x64x!infc.storage<"a8">, ["t", 64]>'
    )
    barrier = '"infc.barrier"() : () -> () loc("layers.1")\nreturn'
    text = text.replace("return", barrier)
    with context():
        parsed = parse(text)
        with pytest.raises(UserError) as caught:
            check_legality(parsed, Level.PHASE)
        assert str(caught.value) == (
            "error[INF2003]: not legal at level phase: 2 operations\n"
            '   - infc.quantize is not legal at level phase (loc("here"))\n'
            '   - infc.barrier is not legal at level phase (loc("layers.1"))'
        )
        check_legality(parsed, Level.MEMORY)
        check_legality(parsed, Level.MACHINE)


def test_options() -> None:
    with pytest.raises(UserError) as caught:
        CompileOptions(chunk=0)
    assert str(caught.value) == (
        "error[INF5001]: expected chunk between 1 and 16777216, got 0\n"
        "   = hint: choose a chunk in that range"
    )
    with pytest.raises(UserError) as caught:
        CompileOptions(kv_dtype="f8")
    assert str(caught.value) == (
        "error[INF5001]: expected kv_dtype auto, f32, f16, bf16, int8, got 'f8'\n"
        "   = hint: auto keeps f16, or f32 where all weights are f32"
    )
    with context(), pytest.raises(UserError) as caught:
        CompileOptions.from_module(parse("module {}"))
    assert str(caught.value) == "error[INF2001]: the module carries no infc.options"


@pytest.mark.parametrize(
    "text",
    [
        "module {" * 20_000 + "}" * 20_000,
        "tuple<" * 200_000,
        "// " + ")" * 20_000 + "\n" + "module {" * 20_000,
        ")" * 20_000 + "module {" * 20_000,
        "#map = affine_map<(d0) -> (" + "-" * 300_000 + "d0)>",
        "#map = affine_map<(d0) -> (" + "- " * 300_000 + "d0)>",
    ],
    ids=["regions", "types", "comment", "closers", "signs", "spaced"],
)
def test_brackets_beyond_what_the_parser_can_bear(text: str) -> None:
    """MLIR calls itself for each, and the process would end."""
    assert refused(text) == (
        "error[INF2001]: the IR is nested too deeply: expected at most 200 brackets in one "
        "another\n"
        "  --> dump.mlir"
    )


def test_brackets_that_are_none() -> None:
    with context():
        parse("module {" * 200 + "}" * 200)
        parse('module attributes {infc.note = "' + "{" * 1000 + '"} {}')
        parse("module { // " + "{" * 1000 + "\n}")
        parse("".join(f"#map{i} = affine_map<(d0) -> (d0)>\n" for i in range(300)) + "module {}")


def test_a_string_without_an_end_is_read_once() -> None:
    """To look for its end from each of its quotes takes minutes."""
    assert "the IR does not parse" in refused('module attributes {infc.note = "' + r"\"" * 50_000)
