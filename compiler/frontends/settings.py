"""Typed look-ups in GGUF metadata or config.json that collect what is wrong."""

from __future__ import annotations

from collections.abc import Mapping

from infc.frontends.findings import Findings

_MAX_INTEGER = 2**31 - 1
_MAX_NUMBER = 1e30


class Settings:
    """Settings by key.

    A look-up that fails notes a finding and answers with a stand-in of the right type, so that the
    rest of the settings is checked too; the caller raises the findings before it uses an answer.
    A value of None (JSON null) means that there is none, even where a default exists.
    """

    def __init__(
        self,
        values: Mapping[str, object],
        findings: Findings,
        location: str,
        defaults: Mapping[str, object] | None = None,
        prefix: str = "",
    ) -> None:
        """`prefix` is put before each key; `defaults` hold unprefixed keys."""
        self._values, self._defaults, self._prefix = values, defaults or {}, prefix
        self.findings, self.location = findings, location

    def raw(self, key: str) -> object:
        """The value as it is, or its default, or None."""
        full = self._prefix + key
        return self._values[full] if full in self._values else self._defaults.get(key)

    def has(self, key: str) -> bool:
        """Whether the key has a value or a default."""
        return self.raw(key) is not None

    def integer(self, key: str, default: int | None = None, minimum: int = 1) -> int:
        """A whole number from `minimum` to 2^31 - 1."""
        value = self.raw(key)
        if value is None and default is not None:
            return default
        whole = isinstance(value, int) and not isinstance(value, bool)
        if whole and isinstance(value, int) and minimum <= value <= _MAX_INTEGER:
            return value
        self._wrong(key, f"a whole number from {minimum} to {_MAX_INTEGER}", value)
        return minimum

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above zero."""
        value = self.raw(key)
        if value is None and default is not None:
            return default
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if numeric and isinstance(value, int | float) and 0 < value <= _MAX_NUMBER:
            return float(value)
        self._wrong(key, "a finite number above zero", value)
        return 1.0

    def optional_number(self, key: str) -> float | None:
        """As `number`; absent and zero mean None."""
        value = self.raw(key)
        if value is None or (value == 0 and not isinstance(value, bool)):
            return None
        return self.number(key)

    def flag(self, key: str, default: bool) -> bool:
        """A truth value."""
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self._wrong(key, "true or false", value)
        return bool(value)

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self.raw(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            self._wrong(key, "a string", value)
            return ""
        return value

    def nested(self, key: str) -> Settings | None:
        """The settings below a key, or None where it is absent."""
        value = self.raw(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            self._wrong(key, "an object", value)
            return None
        return Settings(value, self.findings, f"{self.location}: {self._prefix}{key}")

    def wrong(self, key: str, expected: str, got: str) -> None:
        """Notes that a key's value cannot be used."""
        self.findings.config(
            f'expected {expected} in "{self._prefix}{key}", got {got}', self.location
        )

    def _wrong(self, key: str, expected: str, value: object) -> None:
        self.wrong(key, expected, _shown(value))


def _shown(value: object) -> str:
    """A value as an error message shows it: short, whatever it is."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value.bit_length() > 128:
        return "a much larger number"
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 60 else f'"{value[:60]}..."'
    return "an object" if isinstance(value, Mapping) else "a list"
