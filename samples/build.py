"""infc as a step of a build: model in, artifact and a record of it out.

    python samples/build.py MODEL ARTIFACT [--max-context N] [--expect-digest SHA256]

Prints one JSON object. Exit codes: 0 done, 1 the model or the options are at fault, 3 the digest is
another one than expected. The same model, options and infc give the same digest, whoever builds.
"""

from __future__ import annotations

import argparse
import json
import sys

import infc
from infc.diagnostics import UserError

OTHER_DIGEST = 3


def main() -> int:
    """Compile, check, save, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("artifact")
    parser.add_argument("--max-context", type=int, default=4096)
    parser.add_argument("--expect-digest")
    options = parser.parse_args()

    try:
        # Without `output` the artifact is kept in the cache.
        artifact = infc.compile(options.model, target="cpu", max_context=options.max_context)
        digest = artifact.manifest.digest
        if options.expect_digest not in (None, digest):
            print(f"expected digest {options.expect_digest}, got {digest}", file=sys.stderr)
            return OTHER_DIGEST
        artifact.save(options.artifact)
        first_token = smoke_test(options.artifact)
    except UserError as error:
        # Every error has a stable code and says what can be done; `infc explain CODE` says more.
        print(error, file=sys.stderr)
        print(json.dumps({"error": {"code": error.code, "message": error.diagnostic.message}}))
        return 1

    manifest = artifact.manifest
    record = {
        "artifact": options.artifact,
        "digest": digest,
        "model_sha256": manifest.model.sha256,
        "targets": {phase: facts["name"] for phase, facts in manifest.targets.items()},
        "size_bytes": sum(member.size_bytes for member in manifest.members.values()),
        "first_token": first_token,
    }
    print(json.dumps(record, indent=2))
    return 0


def smoke_test(path: str) -> int:
    """The likeliest token behind token 1, from the saved artifact."""
    session = infc.load(path, threads=1)
    logits = session.prefill([1])  # float32 [vocab]
    return int(logits.argmax())


if __name__ == "__main__":
    sys.exit(main())
