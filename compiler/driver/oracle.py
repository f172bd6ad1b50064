"""`--verify`: after every pass the reference runs the module, and the first pass that changed a
number beyond its tolerance is named.

The input is small: a few tokens in one prefill call, one decode call behind it. What is compared is
the logits of the last position of each, with the range of the graph's own logits as the yardstick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from infc.diagnostics import Code, UserError
from infc.driver.loading import emitted_programs
from infc.ir.attributes import from_attribute, get
from infc.ir.levels import Level, level_of
from infc.ir.mlir import ir
from infc.ir.types import BufferType, KVType, is_buffer
from infc.passes.walk import programs
from infc.pipeline.options import CompileOptions
from infc.reference.buffer import Buffer
from infc.reference.interpreter import Interpreter
from infc.reference.kv import LayerCache
from infc.runtime.session import Session
from infc.target.backend import Emulator, WeightData

if TYPE_CHECKING:
    from infc.artifact import Artifact

F32 = NDArray[np.float32]
EXACT, QUANTISED = 1e-4, 1e-1
"""Largest error of a logit, as a part of the range of logits: float32 in another order, and
activations quantised to 8 bits."""
CACHED = {"f32": EXACT, "f16": 5e-3, "bf16": 4e-2, "int8": 1e-1}
"""The same for what a cache of each dtype rounds."""
TOKENS = 5
"""Tokens of the small prompt, as far as the context reaches; one more is decoded."""


class Oracle:
    """Remembers what the graph means and compares every later module with it.

    Args:
        module: the graph-level module, before any pass.
        weights: the raw bytes of the model's tensors.
    """

    def __init__(self, module: ir.Module, weights: WeightData) -> None:
        if level_of(module) is not Level.GRAPH:
            raise UserError(
                Code.OPTION,
                f"--verify starts from a graph-level module, got level {level_of(module)}",
                hint="resume from 000-import.mlir, or leave --verify out",
            )
        self.weights = weights
        options = CompileOptions.from_module(module)
        self.tokens = _tokens(_vocabulary(module))[: options.max_context]
        # A context of one position has room for a prompt only.
        self.prompt = max(1, len(self.tokens) - 1)
        self.chunk = options.prefill_rows
        self.emulator: Emulator | str = ""
        """What runs the programs where this host cannot, or why nothing does."""
        self.expected = self._run_graph(module)
        self.spread = float(np.ptp(self.expected))

    def check(self, name: str, module: ir.Module) -> None:
        """Run a module after a pass.

        Raises:
            UserError: INF2005, naming the pass, the error and the tolerance.
        """
        level = level_of(module)
        if level is Level.MACHINE:
            return  # no meaning in NumPy: `check_artifact` runs it
        got = self._run_graph(module) if level is Level.GRAPH else self._run_programs(module)
        self._compare(f"pass {name}", got, _tolerance(module))

    def check_artifact(self, artifact: Artifact) -> str:
        """Run the compiled programs themselves, as far as that is possible here.

        Returns:
            A sentence that says what was verified and what was not.

        Raises:
            UserError: INF2005.
        """
        from infc.driver.loading import load

        passes = "verified: every pass keeps the numbers of a short prompt and a step"
        try:
            session = load(artifact, threads=1)
        except UserError as error:
            if error.code is not Code.ARTIFACT_HOST:
                raise
            absent = error.diagnostic.message
        else:
            self._check_session(artifact, session)
            return f"{passes}, and so do the compiled programs"
        emulator = self.emulator
        split = artifact.manifest.targets["prefill"] != artifact.manifest.targets["decode"]
        if isinstance(emulator, str) or split:
            why = f"; {emulator}" if isinstance(emulator, str) and emulator else ""
            return (
                f"{passes}, down to the memory level. Not verified: machine code, which was not "
                f"run: {absent}{why}"
            )
        runnable = emulator.load(emitted_programs(artifact, "decode"))
        self._check_session(artifact, Session(runnable, None, threads=1))
        return (
            f"{passes}, and {emulator.what}. Not verified: machine code, which was not run: "
            f"{absent}"
        )

    def _check_session(self, artifact: Artifact, session: Session) -> None:
        tokens = [int(token) for token in self.tokens]
        rows = [session.prefill(tokens[: self.prompt])]
        got = np.stack(rows + [session.decode(token) for token in tokens[self.prompt :]])
        kernels = [k for phase in artifact.manifest.cost_estimate.values() for k in phase]
        rounded = {"int8", "bf16"}  # activations are
        # Programs of machines that list no kernels multiply in no wider types.
        unlisted = any(
            target["kind"] == "dataflow" for target in artifact.manifest.targets.values()
        )
        quantised = unlisted or any(rounded & set(kernel["operations"]) for kernel in kernels)
        cached = CACHED[artifact.manifest.kv_layout["kv_dtype"]]
        self._compare("code generation", got, max(QUANTISED if quantised else EXACT, cached))

    def _compare(self, what: str, got: F32, tolerance: float) -> None:
        error = float(np.abs(got - self.expected).max()) / self.spread
        if not error <= tolerance:
            raise UserError(
                Code.VERIFY_MISMATCH,
                f"{what} changed the logits by {error:.2g} of their range, "
                f"allowed are {tolerance:g}",
                notes=["a few tokens prefilled and one decoded, against the graph in NumPy"],
                hint="compare the dumps before and after it (--dump)",
            )

    def _run_graph(self, module: ir.Module) -> F32:
        positions = np.arange(len(self.tokens), dtype=np.int32)
        (logits,) = Interpreter(module, self.weights).run("model", [self.tokens, positions])
        return np.asarray(logits[self.prompt - 1 :], np.float32)

    def _run_programs(self, module: ir.Module) -> F32:
        signature = from_attribute(module.operation.attributes["infc.signature"])
        caches = [
            LayerCache(
                KVType(
                    signature["kv_dtype"],
                    signature["kv_heads"],
                    signature["head_dim"],
                    held,
                    window,
                ),
                signature["max_slots"],
            )
            for held, window in zip(signature["capacity"], signature["windows"], strict=True)
        ]
        prefill, decode = programs(module)
        for start in range(0, self.prompt, self.chunk):
            chunk = self.tokens[start : min(start + self.chunk, self.prompt)]
            last = self._run_main(prefill, caches, chunk, start)
        rows = [last]
        if len(self.tokens) > self.prompt:
            rows.append(self._run_main(decode, caches, self.tokens[self.prompt :], self.prompt))
        return np.concatenate(rows)

    def _run_main(
        self, program: ir.OpView, caches: list[LayerCache], tokens: NDArray[np.int32], start: int
    ) -> F32:
        """Run one program; at the memory level its operands and results are buffers."""
        interpreter = Interpreter(program, self.weights, caches)
        count = len(tokens)
        arrays: list[Any] = [
            tokens,
            np.arange(start, start + count, dtype=np.int32),
            np.zeros(count, np.int32),
            np.array([count - 1], np.int32),
        ]
        arguments = interpreter.functions["main"].regions[0].blocks[0].arguments
        if not is_buffer(arguments[0].type):
            return np.asarray(interpreter.run("main", arrays)[0], np.float32)
        buffers = [Buffer(BufferType.of(argument.type)) for argument in arguments]
        for buffer, array in zip(buffers, arrays, strict=False):
            buffer.content = array
        interpreter.run("main", buffers)
        return np.asarray(buffers[4].content, np.float32)


def _tokens(vocab: int) -> NDArray[np.int32]:
    """The input of every run: spread over the vocabulary, the same each time."""
    return np.random.default_rng(0).integers(0, vocab, TOKENS + 1).astype(np.int32)


def _vocabulary(module: ir.Module) -> int:
    for op in module.body.operations:
        if op.operation.name == "func.func":
            kind = ir.FunctionType(ir.TypeAttr(op.operation.attributes["function_type"]).value)
            return int(ir.RankedTensorType(kind.results[0]).get_dim_size(1))
    raise UserError(Code.IR_SYNTAX, "a graph-level module has a function @model")


def _tolerance(module: ir.Module) -> float:
    """What the ops of a module may cost in accuracy."""
    names: set[str] = set()

    def visit(op: ir.Operation) -> ir.WalkResult:
        names.add(op.name)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    if "infc.quantize" in names:
        return QUANTISED
    signature = get(module.operation, "infc.signature", {})
    return CACHED[signature.get("kv_dtype", "f32")]
