"""The simulators of the accelerator: of results (`execute`), of time, and of what may go wrong.

All three read the same binary programs. `walk` is the control flow that they share, `arithmetic`
what each instruction computes; nothing here knows how programs are made or what they should cost.
"""
