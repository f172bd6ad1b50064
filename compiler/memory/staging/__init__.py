"""Software-managed SRAM: what lies on chip, what is streamed, when each transfer starts.

Files in the order data flows: `problem` (machine, blocks, steps), `pieces` (steps cut into parts,
blocks into pieces), `bound` (no schedule can be faster), `spans` (how long each piece stays),
`dma` and `forward` (when each transfer starts), `scheduler` (`schedule_transfers`, which tries
policies, and the baselines), `plan` (the answer). Beside them, sharing no code with them:
`timeline` (what a plan takes, event by event) and `checker` (whether it is allowed).
"""
