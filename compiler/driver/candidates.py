"""The targets that an estimate is about: names, files, another link, other figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from infc.diagnostics import Code, UserError
from infc.target.changes import with_figures
from infc.target.discovery import cost_only_targets, find_link, find_target
from infc.target.links import with_link
from infc.target.schema import Target


def read_settings(settings: Sequence[str]) -> dict[str, list[str]]:
    """Values by figure, from `FIGURE=VALUE[,VALUE]`; raises UserError (INF5001)."""
    found: dict[str, list[str]] = {}
    for setting in settings:
        figure, equals, values = setting.partition("=")
        each = [value.strip() for value in values.split(",")]
        if not equals or not figure or not all(each):
            raise UserError(
                Code.OPTION,
                f"expected FIGURE=VALUE, got {setting!r}",
                location="--set",
                hint="for example --set memory.hbm.bandwidth=4.8TB/s",
            )
        if figure in found:
            raise UserError(
                Code.OPTION,
                f"figure {figure!r} is set twice",
                location="--set",
                hint=f"to sweep, write --set {figure}=VALUE,VALUE",
            )
        found[figure] = each
    return found


def candidates(
    names: Sequence[str], link: str | None, settings: Mapping[str, Sequence[str]]
) -> list[tuple[str, Target]]:
    """Each target with every combination of the values, and what to call it.

    Args:
        names: of targets, or paths of target files; none for all that only have a cost model.
        link: name or file of a link in place of their own between chips.
        settings: values of figures; see `infc.target.changes`.

    Raises:
        UserError: nothing has such a name (INF3001), a file is wrong (INF3002), or a figure cannot
            be set so (INF5001).
    """
    option = None if link is None else find_link(link)
    swept = [figure for figure, values in settings.items() if len(values) > 1]
    found = []
    for target in map(find_target, names) if names else cost_only_targets():
        if option is not None:
            target = with_link(target, option)
        for combination in product(*settings.values()):
            values = dict(zip(settings, combination, strict=True))
            label = " ".join([target.name, *(f"{figure}={values[figure]}" for figure in swept)])
            found.append((label, with_figures(target, values)))
    return found
