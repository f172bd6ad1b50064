"""One report for everything that is wrong with a model."""

from __future__ import annotations

from infc.diagnostics import Code, Problem, UserError

# Most fundamental first: the report carries the code of its gravest finding.
_HEADLINES = {
    Code.MODEL_UNSUPPORTED: "the model needs what infc does not support",
    Code.MODEL_CONFIG: "the model's settings are incomplete or contradict one another",
    Code.MODEL_TENSOR: "the model's tensors are not as expected",
}


class Findings:
    """Collects what is wrong, so that the user sees all of it at once."""

    def __init__(self, location: str) -> None:
        """`location` names the model."""
        self._location = location
        self._problems: list[tuple[Code, Problem]] = []

    def unsupported(self, message: str, location: str | None = None) -> None:
        """The model may be sound, but infc cannot run it."""
        self._problems.append((Code.MODEL_UNSUPPORTED, Problem(message, location)))

    def config(self, message: str, location: str | None = None) -> None:
        """A setting is missing or makes no sense."""
        self._problems.append((Code.MODEL_CONFIG, Problem(message, location)))

    def tensor(self, message: str, location: str | None = None) -> None:
        """A tensor is missing or is not as the settings say."""
        self._problems.append((Code.MODEL_TENSOR, Problem(message, location)))

    def __len__(self) -> int:
        """How many there are."""
        return len(self._problems)

    @property
    def settings_are_sound(self) -> bool:
        """Whether no setting was found wrong: if one was, checks that build on it would mislead."""
        return all(code != Code.MODEL_CONFIG for code, _ in self._problems)

    def raise_if_any(self, hint: str | None = None) -> None:
        """Raises one UserError with all findings, gravest kind first; returns if there are none."""
        for code, headline in _HEADLINES.items():
            if any(found == code for found, _ in self._problems):
                order = list(_HEADLINES)
                ranked = sorted(self._problems, key=lambda item: order.index(item[0]))
                raise UserError(
                    code,
                    headline,
                    location=self._location,
                    hint=hint,
                    problems=[problem for _, problem in ranked],
                )
