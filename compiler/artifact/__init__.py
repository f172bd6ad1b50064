"""The `.infc` container: what a compilation leaves, and what a session loads.

An artifact is one file (a zip without compression) or a folder. Its members lie in memory as they
lie on disk, so loading is mapping. In the order data flows:

- `manifest`: `manifest.json`, what the artifact says about itself, typed.
- `checksums`: the sums a member is recorded with, and how damage is found quickly.
- `zip_format`: the bytes of the single-file form, written and read strictly.
- `output`: a file or folder that appears whole or not at all.
- `writer`: `write_artifact`.
- `members`: the two forms, opened: names and mapped bytes.
- `extract`: a member as a file that the dynamic linker opens.
- `reader`: `open_artifact` and `Artifact`.

The programs are native code. Checksums find damage; they are no proof of where a file comes from:
open only artifacts whose maker you trust, as with any program.
"""

from infc.artifact.manifest import Facts, Manifest, MemberRecord, ModelRecord
from infc.artifact.reader import Artifact, open_artifact
from infc.artifact.writer import Form, MemberSource, write_artifact

__all__ = [
    "Artifact",
    "Facts",
    "Form",
    "Manifest",
    "MemberRecord",
    "MemberSource",
    "ModelRecord",
    "open_artifact",
    "write_artifact",
]
