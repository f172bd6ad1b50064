"""The infc dialect in real MLIR: five levels, one context.

In the order a reader wants them: `infc.mlir` (the dialect), `types` and `attributes` (its types and
attributes as Python values), `ops` (building), `levels` (what is legal where), `verifier`,
`context` (parsing and printing), `outline` (moving ops into functions), `network` (the graph as
networkx sees it), `storage` (quantised storage formats), `mlir` (the one import of the bindings).
"""
