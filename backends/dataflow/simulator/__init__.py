"""The simulators of the accelerator: of results (`execute`), of time, and of what may go wrong.

All three read the same binary programs. `walk` is the control flow that they share; nothing here
knows how programs are made or what they should cost.

Execution, in the order data flows: `execute` (the front door), `interpreter` (the compiled loop),
`semaphores` (who can go on), `moves`, `matrix`, `vector` and `elementwise` (what instructions do),
`elementary` (functions of one number), `memory` (what an access may be), `raw` (the access).
"""
