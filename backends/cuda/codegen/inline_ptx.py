"""The texts of inline PTX that `GpuBuilder` emits.

The lockstep interpreter knows each by the table of `infc.backends.cuda.lockstep.assembly`.
"""

TEST_WAIT = (
    "{.reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [$1], $2; selp.b32 $0, 1, 0, p;}"
)
"""Whether a phase of a barrier in shared memory has ended: 1 or 0."""
AND_OR = "lop3.b32 $0, $1, $2, $3, 0xEA;"
"""`$1 & $2 | $3`."""
SELECT_BITS = "lop3.b32 $0, $1, $2, $3, 0xE4;"
"""`$1 & $3 | $2 & ~$3`."""
