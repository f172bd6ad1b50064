"""Code for the dataflow machine, in the order data flows.

- `model`: a program of the schedule level as calls, layers apart;
- `memory`, `stream`, `builder`: buffers, one unit's instructions, cores and groups of cores;
- `values`, `scope`: what kernels hand on, and what their emitters share;
- `contents`, `home`, `weights`: what lies where before the first call, the stream of weights;
- `exchange`, `tables`: rows between cores, rows that are looked up;
- kernels: `rows`, `linear` with `columns`, `rotary` and `attention` with `kv_*` and `attention_*`,
  `head`;
- `stage`, `emit`: loops over layers, all stages of a program.
"""
