"""Artifacts whose manifest says what no compiler writes, under a right digest: every reader says so
and runs nothing."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import SmallModels

import infc
from infc.artifact import Artifact, open_artifact
from infc.cost.kernels.threaded import THREADED
from infc.diagnostics import UserError
from infc.driver import predict
from infc.driver.explanation import explain, program_notes
from infc.driver.sections import check_sections
from infc.target.fitted import FittedClass

SECTIONS = ("targets", "options", "programs", "kv_layout", "memory_plan", "cost_estimate")
OTHER_PROGRAMS = (
    "error[INF4003]: the programs are not those that manifest.json describes\n"
    "  --> m.infc\n"
    "   = hint: compile the model again"
)
ODD: tuple[Any, ...] = (None, -1, 0, 2**70, 1e308, "x", [], {}, True, [1], {"a": 1}, 0.5)


@pytest.fixture(scope="module")
def path(small_models: SmallModels) -> Path:
    return small_models.artifact(small_models.model("llama2", "Q8_0"), "cpu")


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> Artifact:
    """The artifact with another manifest; `change` may do anything to its sections."""
    opened = open_artifact(path)
    sections = copy.deepcopy({name: getattr(opened.manifest, name) for name in SECTIONS})
    change(sections)
    opened.manifest = opened.manifest.model_copy(update=sections)
    return opened


def report(path: Path, change: Callable[[dict[str, Any]], object]) -> str:
    with pytest.raises(UserError) as caught:
        check_sections(changed(path, change))
    return str(caught.value).replace(str(path), "m.infc")


def listed(*problems: str) -> str:
    count = len(problems)
    wrong = f"{count} entries of manifest.json are" if count > 1 else "1 entry of manifest.json is"
    return (
        f"error[INF4002]: {wrong} missing or wrong\n"
        "  --> m.infc\n"
        + "".join(f"   - {problem}\n" for problem in problems)
        + "   = hint: compile the model again with this infc"
    )


def said(error: UserError) -> str:
    """The text of an error about an artifact, wherever that lies."""
    return re.sub(r"--> \S+/\w+\.infc", "--> m.infc", str(error))


def kernel_name(path: Path, kind: str) -> str:
    """The first kernel of a kind in decoding."""
    kernels = open_artifact(path).manifest.cost_estimate["decode"]
    return next(str(kernel["kernel"]) for kernel in kernels if kernel["kind"] == kind)


def test_what_the_compiler_writes_is_read(path: Path) -> None:
    check_sections(open_artifact(path))


def test_entries_that_cannot_be_read_are_listed(path: Path) -> None:
    def change(sections: dict[str, Any]) -> None:
        del sections["programs"]["decode"]["max_context"]
        sections["kv_layout"]["kv_dtype"] = "f64"
        sections["cost_estimate"]["prefill"][0]["launches"] = 0
        plans = sections["memory_plan"]["decode"]["plans"]
        plans["main"]["arena"]["height_bytes"] = "big"
        plans["layer0"]["heap"] = {"height_bytes": 4}

    assert report(path, change) == listed(
        "field required (programs.decode.max_context)",
        "input should be 'f32', 'f16', 'bf16' or 'int8' (kv_layout.kv_dtype)",
        "field required (memory_plan.decode.plans.layer0.heap.lower_bound_bytes)",
        "input should be a valid integer (memory_plan.decode.plans.main.arena.height_bytes)",
        "input should be greater than or equal to 1 (cost_estimate.prefill.0.launches)",
    )


def test_a_phase_without_a_target_or_programs(path: Path) -> None:
    def change(sections: dict[str, Any]) -> None:
        del sections["targets"]["prefill"]
        del sections["programs"]["decode"]
        del sections["programs"]["prefill"]

    assert report(path, change) == listed(
        "field required (targets.prefill)",
        "field required (programs.prefill)",
        "field required (programs.decode)",
    )


def test_sections_that_contradict_each_other(path: Path) -> None:
    def change(sections: dict[str, Any]) -> None:
        sections["kv_layout"]["head_dim"] += 16
        sections["programs"]["prefill"]["windows"].append(0)
        sections["memory_plan"]["decode"]["order"].pop()
        sections["cost_estimate"]["decode"][0]["bytes"] = {"hbm": 1.0}
        del sections["memory_plan"]["prefill"]

    assert report(path, change) == listed(
        "expected as many windows as capacities (programs.prefill)",
        "expected a memory plan where there is a cost estimate (prefill)",
        "expected what programs.decode says (kv_layout)",
        "expected each kernel as often as it is launched (memory_plan.decode.order)",
        f"the target has no memory 'hbm' (cost_estimate.decode.{kernel_name(path, 'rows')}.bytes)",
    )


def test_a_function_is_missing(path: Path) -> None:
    def change(sections: dict[str, Any]) -> None:
        plans = sections["memory_plan"]["decode"]["plans"]
        plans["other"] = plans.pop("main")

    assert report(path, change) == listed("field required (memory_plan.decode.plans.main)")


def test_classes_of_kernels_and_their_constants(path: Path) -> None:
    constants = {spec.name: spec.high for spec in THREADED["row-attention"].constants}
    constants["overlap"] = 0.5
    fitted = FittedClass(constants=constants, low=-0.1, high=0.1).model_dump(mode="json")

    def change(sections: dict[str, Any]) -> None:
        target = sections["targets"]["decode"]
        target["kernels"] = {"row-attention": fitted, "dance": fitted}
        target["sources"]["kernels"] = "nowhere"
        for kernel in sections["cost_estimate"]["decode"]:
            if kernel["kind"] == "attention":
                del kernel["sizes"]["units"]
            if kernel["kind"] == "argmax":
                kernel["class"] = "dance"

    assert report(path, change) == listed(
        "expected overlap of 1 to 8 (targets.decode.kernels.row-attention)",
        "class row-attention asks for units "
        f"(cost_estimate.decode.{kernel_name(path, 'attention')}.sizes)",
        f"there is no class 'dance' (cost_estimate.decode.{kernel_name(path, 'argmax')}.class)",
    )


@pytest.mark.parametrize("name", ["decode_arena_bytes", "kv_bytes", "weight_bytes"])
def test_programs_of_another_manifest(path: Path, name: str) -> None:
    def change(sections: dict[str, Any]) -> None:
        for program in sections["programs"].values():
            program["info"][name] -= 64

    with pytest.raises(UserError) as caught:
        infc.load(changed(path, change))
    assert said(caught.value) == OTHER_PROGRAMS


@pytest.mark.parametrize("name", ["max_slots", "max_logit_rows", "vocab_size"])
def test_limits_beyond_those_of_the_programs(path: Path, name: str) -> None:
    """More than the programs were compiled for would be read and written behind their memory."""

    def change(sections: dict[str, Any]) -> None:
        for program in sections["programs"].values():
            most = program[name]
            program[name] = [n + 1 for n in most] if isinstance(most, list) else most + 1
        if name in sections["kv_layout"]:
            sections["kv_layout"][name] += 1

    with pytest.raises(UserError, match=r"INF4003.*the programs are not those that"):
        infc.load(changed(path, change))


@pytest.fixture(scope="module")
def elsewhere(small_models: SmallModels) -> Callable[[str], Path]:
    """Artifacts for backends whose signatures have entries of their own."""

    def compiled(target: str) -> Path:
        options = {"max_batch": 1} if target.startswith("dataflow") else {}
        return small_models.artifact(small_models.model("llama2", "Q8_0"), target, **options)

    return compiled


def of_programs(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    """The same change of both programs."""
    return lambda sections: [change(program) for program in sections["programs"].values()]


def read_all(artifact: Artifact) -> None:
    """Everything that reads a backend's own entries, and runs on any machine."""
    predict(artifact, prompt_tokens=20, new_tokens=5, threads=1)
    program_notes(artifact)
    if artifact.manifest.targets["decode"]["backend"] != "cuda":
        infc.load(artifact).prefill([1, 2, 3])


WRONG: list[tuple[str, Callable[[dict[str, Any]], object], tuple[str, ...]]] = [
    (
        "reference",
        lambda program: program["weights"].update({"token_embd.weight": [0, -1]}),
        ("input should be greater than or equal to 0 (programs.weights.token_embd.weight.1)",),
    ),
    (
        "dataflow:test",
        lambda program: (
            program.pop("planned_bytes"),
            program["timed"].pop("prefill"),
            program["timed"]["decode"]["sketch"].update(layers="x"),
            program["timed"]["decode"]["mapping"]["stages"][0]["area"].pop("rows"),
        ),
        (
            "field required (programs.planned_bytes)",
            "input should be a valid array (programs.timed.decode.sketch.layers)",
            "field required (programs.timed.decode.mapping.stages.0.area.rows)",
        ),
    ),
    (
        "cuda:sm_90a",
        lambda program: (
            program["phases"].update(late=program["phases"].pop("decode")),
            program["phases"]["prefill"]["launches"][0].update(rows="z", threads=0),
        ),
        (
            "input should be greater than or equal to 1 "
            "(programs.phases.prefill.launches.0.threads)",
            "input should be 't' or 'r' (programs.phases.prefill.launches.0.rows)",
            "string should match pattern '^(prefill|decode)$' (programs.phases.late.[key])",
        ),
    ),
]


@pytest.mark.parametrize(("target", "change", "problems"), WRONG, ids=[each[0] for each in WRONG])
def test_entries_of_a_backend_are_checked(
    elsewhere: Callable[[str], Path],
    target: str,
    change: Callable[[dict[str, Any]], object],
    problems: tuple[str, ...],
) -> None:
    with pytest.raises(UserError) as caught:
        read_all(changed(elsewhere(target), of_programs(change)))
    assert said(caught.value) == listed(*problems)


@pytest.mark.parametrize(
    ("target", "change"),
    [
        (
            "reference",
            lambda program: program["weights"].update({"output.weight": [1, 1 << 40]}),
        ),
        ("dataflow:test", lambda program: program.update(cache_bytes=program["cache_bytes"] - 64)),
        ("dataflow:test", lambda program: program["cache_layers"][0].__setitem__(0, 1)),
        ("dataflow:test", lambda program: program["cache_layers"].pop()),
        ("dataflow:test", lambda program: program.update(cache_starts=[[]])),
        ("dataflow:test", lambda program: program.update(vocab_size=program["vocab_size"] - 1)),
        ("dataflow:test", lambda program: program.update(vocab_size=program["vocab_size"] + 1)),
    ],
)
def test_programs_of_another_backends_manifest(
    elsewhere: Callable[[str], Path], target: str, change: Callable[[dict[str, Any]], object]
) -> None:
    with pytest.raises(UserError) as caught:
        infc.load(changed(elsewhere(target), of_programs(change)))
    assert said(caught.value) == OTHER_PROGRAMS


@pytest.mark.parametrize(
    ("target", "change"),
    [
        ("reference", lambda program: program["weights"].pop("token_embd.weight")),
        ("dataflow:test", lambda program: program["timed"]["decode"]["sketch"].update(most={})),
        ("dataflow:test", lambda program: program["timed"]["decode"]["sketch"].update(bodies=[])),
        (
            "dataflow:test",
            lambda program: program["timed"]["prefill"]["mapping"]["stages"][0].update(layers=99),
        ),
        (
            "dataflow:test",
            lambda program: program["timed"]["decode"]["sketch"]["head"][0]["sizes"].pop("width"),
        ),
        (
            "dataflow:test",
            lambda program: program["timed"]["decode"]["sketch"]["tail"][-1].update(op="dance"),
        ),
    ],
)
def test_entries_that_contradict_each_other(
    elsewhere: Callable[[str], Path], target: str, change: Callable[[dict[str, Any]], object]
) -> None:
    with pytest.raises(UserError) as caught:
        read_all(changed(elsewhere(target), of_programs(change)))
    assert said(caught.value) == OTHER_PROGRAMS


def test_a_context_beyond_the_caches(path: Path) -> None:
    change = of_programs(lambda program: program.update(max_context=program["max_context"] + 1))
    assert report(path, change) == listed(
        "expected a capacity of max_context (programs.prefill)",
        "expected a capacity of max_context (programs.decode)",
    )


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something in a section can be changed: all keys, and the first entries of lists."""
    if len(above) > 1:
        yield above
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*above, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value[:2]):
            yield from places(inner, (*above, number))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_stands_there_is_refused_or_read(path: Path, data: st.DataObject) -> None:
    whole = open_artifact(path).manifest
    every = sorted(places({name: getattr(whole, name) for name in SECTIONS}), key=str)
    place = data.draw(st.sampled_from(every))
    value = data.draw(st.sampled_from((*ODD, "remove")))

    def change(sections: dict[str, Any]) -> None:
        around: Any = sections
        for key in place[:-1]:
            around = around[key]
        if value == "remove":
            del around[place[-1]]
        else:
            around[place[-1]] = value

    artifact = changed(path, change)
    for read in (
        lambda: predict(artifact, prompt_tokens=20, new_tokens=5, threads=1),
        lambda: infc.load(artifact).prefill([1, 2, 3]),
    ):
        with contextlib.suppress(UserError):
            read()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_whatever_stands_in_a_sketch_is_refused_or_counted_with(
    elsewhere: Callable[[str], Path], data: st.DataObject
) -> None:
    opened = elsewhere("dataflow:test")
    phase = data.draw(st.sampled_from(["prefill", "decode"]))
    timed = open_artifact(opened).manifest.programs[phase]["timed"]
    place = data.draw(st.sampled_from(sorted(places({"timed": timed}, ("programs",)), key=str)[1:]))
    value = data.draw(st.sampled_from((1, 7, "f32", "argmax", *ODD, "remove")))

    def change(sections: dict[str, Any]) -> None:
        around: Any = sections["programs"][phase]
        for key in place[1:-1]:
            around = around[key]
        if value == "remove":
            del around[place[-1]]
        else:
            around[place[-1]] = value

    with contextlib.suppress(UserError):
        predict(changed(opened, change), prompt_tokens=20, new_tokens=5, threads=1)


def test_explain_refuses_too(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = changed(path, lambda sections: sections["options"].pop("prompt"))
    monkeypatch.setattr("infc.driver.explanation.open_artifact", lambda path: broken)
    with pytest.raises(UserError) as caught:
        explain(path)
    assert str(caught.value).replace(str(path), "m.infc") == listed(
        "field required (options.prompt)"
    )
