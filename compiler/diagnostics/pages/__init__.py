"""One page for every error code, as Markdown: what it means, why, an example, what to do."""

from importlib.resources import files

from infc.diagnostics.errors import Code


def page(code: Code) -> str:
    """The text of a code's page."""
    return files(__name__).joinpath(f"{code.value}.md").read_text(encoding="utf-8")
