"""The process that renders one chat template: a request in on stdin, an answer out on stdout.

Run by `infc.runtime.chat` as a file, so that it imports nothing but jinja2. The environment is that
of transformers' `apply_chat_template`.
"""

from __future__ import annotations

import datetime
import json
import resource
import signal
import sys
import traceback
from typing import Any


def main() -> None:
    """Answer `{"text": ...}` or `{"error": ..., "line": ...}`."""
    request = json.load(sys.stdin)
    sys.path[:] = request["path"]
    answer = _limited(request)
    sys.stdout.write(json.dumps(answer))


def _limited(request: dict[str, Any]) -> dict[str, object]:
    import jinja2
    import jinja2.nodes
    import jinja2.parser
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(Extension):
        """`{% generation %}` marks the assistant's tokens for training; here it is its content."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: jinja2.parser.Parser) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationTag, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    limit = request["max_memory_bytes"]
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # no handler: the signal ends the process even inside one long operation
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, request["max_cpu_seconds"])
    try:
        pieces = environment.from_string(request["template"]).generate(**request["variables"])
        text = _joined(pieces, request["max_output_characters"])
    except jinja2.TemplateSyntaxError as error:
        return {"error": f"the chat template has an error: {error.message}", "line": error.lineno}
    except MemoryError as error:
        return {"error": "the chat template needs too much memory", "line": _line(error)}
    except Exception as error:  # whatever a template does wrong is the template's error
        what = str(error) or type(error).__name__
        return {"error": f"the chat template fails: {what}", "line": _line(error)}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return {"text": text}


def _joined(pieces: Any, limit: int) -> str:
    kept: list[str] = []
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > limit:
            raise OverflowError(f"expected at most {limit} characters of text")
        kept.append(piece)
    return "".join(kept)


def _line(error: BaseException) -> int | None:
    """The template's line where it happened: jinja2 rewrites tracebacks to name it."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename in ("<template>", "<unknown>")]
    return lines[-1] if lines else None


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    from jinja2.exceptions import TemplateError

    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


if __name__ == "__main__":
    main()
