"""Chat templates: messages to the text a chat model was trained on.

A template is a program from the internet. It runs in jinja2's sandbox, which keeps it from Python's
objects, and in a process of its own with limits on time, memory and output, which keeps it from
hanging or filling this one.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from infc.diagnostics import Code, UserError

MAX_TEMPLATE_BYTES = 1 << 20
MAX_OUTPUT_CHARACTERS = 1 << 23
MAX_MEMORY_BYTES = 1 << 29
MAX_CPU_SECONDS = 1.0
"""Of rendering; templates of the supported families take a few milliseconds."""
MAX_WALL_SECONDS = 20.0
"""Of the whole process; generous, since a loaded machine is nobody's fault."""

_RENDERER = Path(__file__).with_name("chat_renderer.py")


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, object]],
    *,
    bos: str,
    eos: str,
    add_generation_prompt: bool = True,
) -> str:
    """Render a chat template the way transformers does.

    Args:
        template: the Jinja text of the model.
        messages: `{"role": ..., "content": ...}` each; any JSON values.
        bos, eos: the texts of the special tokens, `bos_token` and `eos_token` in the template.
        add_generation_prompt: end with the beginning of the assistant's answer.

    Raises:
        UserError: CHAT_TEMPLATE where the template is wrong, refuses the messages or exceeds a
            limit; the location is a line of the template.
    """
    size = len(template.encode("utf-8", "replace"))
    if size > MAX_TEMPLATE_BYTES:
        raise _error(f"expected a chat template of at most {MAX_TEMPLATE_BYTES} bytes, got {size}")
    variables = {
        "messages": list(messages),
        "tools": None,
        "documents": None,
        "bos_token": bos,
        "eos_token": eos,
        "add_generation_prompt": add_generation_prompt,
    }
    request = {
        "path": sys.path,
        "template": template,
        "variables": variables,
        "max_output_characters": MAX_OUTPUT_CHARACTERS,
        "max_memory_bytes": MAX_MEMORY_BYTES,
        "max_cpu_seconds": MAX_CPU_SECONDS,
    }
    answer = _run(json.dumps(request))
    if "text" in answer:
        return str(answer["text"])
    raise _error(str(answer["error"]), answer.get("line"))


def _run(request: str) -> Mapping[str, object]:
    """What the renderer answers; UserError where it was stopped."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", str(_RENDERER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            output, _ = process.communicate(request.encode("ascii"), MAX_WALL_SECONDS)
        except subprocess.TimeoutExpired:
            raise _error(f"the chat template took more than {MAX_WALL_SECONDS:g} s") from None
        finally:
            process.kill()
    if process.returncode == -signal.SIGPROF:
        raise _error(f"the chat template took more than {MAX_CPU_SECONDS:g} s of processor time")
    if process.returncode != 0:
        raise _error(f"the chat template's process ended with status {process.returncode}")
    answer: Mapping[str, object] = json.loads(output)
    return answer


def _error(message: str, line: object = None) -> UserError:
    return UserError(
        Code.CHAT_TEMPLATE,
        message,
        location="chat template" if line is None else f"chat template, line {line}",
    )
