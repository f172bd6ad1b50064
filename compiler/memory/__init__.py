"""Where buffers live in an arena: live ranges, planners, and a checker that trusts neither.

Files in the order data flows: `liveness` (steps to live ranges), `buffer` (what is planned and what
comes out), `columns` (time reduced to what can conflict, lower bounds), `heuristics` (fast
placements), `search` (a bounded tree search), `planner` (`plan_arena`, which drives them),
`checker` (an independent test of any plan).
"""
