"""Code for the dataflow machine, in the order data flows.

`memory` (SRAM buffers), `stream` (one unit's instructions), `builder` (cores and groups),
`exchange` (rows between cores), the kernels, `emit`.
"""
