"""The command line: thin click commands over `infc.driver`.

`app` is the group and its exit codes, `report` turns exceptions into text and exit codes, `output`
writes to stdout, `progress` and `units` are for people; `commands/` holds one file a command. Only
click is imported until a command runs.
"""

from infc.cli.app import main

__all__ = ["main"]
