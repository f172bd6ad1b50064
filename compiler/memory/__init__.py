"""Where buffers live in an arena: live ranges, planners, and a checker that trusts neither.

Files in the order data flows: `liveness` (steps to live ranges), `buffer` (what is planned and what
comes out), `reuse` (buffers that take another's place), `columns` (time reduced to what can
conflict, lower bounds), `heuristics` (fast placements), `search`, `tree_state` and `tree` (a
bounded tree search; the last is compiled to machine code), `planner` (`plan_arena`, which drives
them), `checker` (an independent test of any plan), `buffers_csv` (files of buffers and offsets).

`staging/` is a package of its own: transfers between a scratchpad and far memory. `fit` says what a
memory can hold, ahead of any plan.
"""
