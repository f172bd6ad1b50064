"""What a compiled model takes of a memory, said before anything runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from small_models import SmallModels

from infc.artifact import open_artifact
from infc.cli import main
from infc.diagnostics import UserError
from infc.driver.fit import artifact_fit, check_host, check_plan_fits
from infc.target.discovery import resolve_target
from infc.target.schema import Target

# Two layers: one with a window, whose cache is a ring, and one without.
CHANGES = {"num_hidden_layers": 2}


@pytest.fixture(scope="module")
def path(small_models: SmallModels) -> Path:
    return small_models.artifact(small_models.model("gemma2", **CHANGES), "cpu")


def with_memory(size_bytes: int, *, assumed: bool = False) -> Target:
    _, target = resolve_target("cpu:x86-64-v3")
    memories = tuple(
        memory.model_copy(update={"size_bytes": size_bytes}) if memory.name == "dram" else memory
        for memory in target.memories
        if memory.name == "dram"
    )
    assumptions = {"memories.dram.size_bytes": "a guess"} if assumed else {}
    return target.model_copy(update={"memories": memories, "assumptions": assumptions})


def test_the_sum_is_what_a_session_holds(path: Path) -> None:
    with open_artifact(path) as artifact:
        fit = artifact_fit(artifact)
        layout, manifest = artifact.manifest.kv_layout, artifact.manifest
        cache = layout["max_slots"] * layout["kv_heads"] * sum(layout["capacity"])
        cache *= 2 * layout["head_dim"] * {"f32": 4, "f16": 2}[layout["kv_dtype"]]
        weights = manifest.members["weights/weights.bin"].size_bytes
        limits = manifest.programs["decode"]
        logits = 4 * limits["vocab_size"] * max(limits["max_logit_rows"])
    assert fit is not None
    assert fit.fits
    assert logits < fit.needed_bytes - weights - cache < 4 << 20
    assert fit.message.startswith("fits with context 64 and batch 3: ")


def test_phases_on_machines_of_their_own_hold_their_own_buffers(path: Path) -> None:
    with open_artifact(path) as artifact:
        one, manifest = artifact_fit(artifact), artifact.manifest
        huge = {"main": {"arena": {"height_bytes": 1 << 40}, "thread": {"height_bytes": 0}}}
        artifact.manifest = manifest.model_copy(
            update={
                "memory_plan": {**manifest.memory_plan, "prefill": {"plans": huge}},
                "targets": {**manifest.targets, "prefill": {"name": "another"}},
            }
        )
        split = artifact_fit(artifact)
    assert one is not None
    assert split is not None
    assert split.needed_bytes <= one.needed_bytes


def test_no_context_beyond_the_trained_one_is_offered(path: Path) -> None:
    """The family's configuration says 64 or more; the memory would hold millions."""
    with open_artifact(path) as artifact:
        fit, trained = artifact_fit(artifact), artifact.manifest.model.context_length
    assert trained is not None
    assert fit is not None
    assert (fit.largest_context, fit.context_limit) == (trained, "model")


def test_a_plan_beyond_the_memory_is_refused(path: Path) -> None:
    with open_artifact(path) as artifact:
        manifest = artifact.manifest
        signature = {**manifest.kv_layout, **manifest.programs["decode"]}
        fit = artifact_fit(artifact)
    assert fit is not None
    # Half of the cache that grows with the context is missing.
    plan = (manifest.members["weights/weights.bin"].size_bytes, manifest.memory_plan, signature)
    units = with_memory(1).compute[0].count - open_target(path).compute[0].count
    threads = max(
        program["plans"]["main"]["thread"]["height_bytes"]
        for program in manifest.memory_plan.values()
    )
    needed = fit.needed_bytes + units * threads
    with pytest.raises(UserError) as refused:
        check_plan_fits(*plan, with_memory(needed - 4096))
    lines = str(refused.value).splitlines()
    assert lines[0].startswith("error[INF2101]: fits with context ")
    assert lines[0].endswith(" at batch 3; context 64 needs 4 KiB more")
    assert lines[1:] == [
        "  --> dram of cpu:x86-64-v3",
        "   = hint: lower --max-context or --max-batch, or choose a target with more memory",
    ]
    check_plan_fits(*plan, with_memory(needed))
    # What is only assumed refuses nothing.
    check_plan_fits(*plan, with_memory(needed - 4096, assumed=True))


def open_target(path: Path) -> Target:
    with open_artifact(path) as artifact:
        return Target.model_validate(artifact.manifest.targets["decode"])


def test_run_refuses_what_this_machine_cannot_hold(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2}
    monkeypatch.setattr(os, "sysconf", lambda name: sizes[name])
    with open_artifact(path) as artifact, pytest.raises(UserError) as refused:
        check_host(artifact)
    assert "does not fit: context 64 and batch 3 take " in str(refused.value)
    result = CliRunner().invoke(main, ["run", str(path), "--prompt", "x", "--threads", "1"])
    assert result.exit_code == 1
    assert "error[INF2101]: does not fit" in result.output
