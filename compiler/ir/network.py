"""A function's data flow as a networkx graph: the way to ask graph questions."""

from __future__ import annotations

import networkx as nx

from infc.ir.attributes import attributes_of, get
from infc.ir.mlir import ir


def network(function: ir.OpView) -> nx.MultiDiGraph[int]:
    """The data flow of a function.

    Returns:
        A graph with a node for each operation (its index in the body; attributes `name`,
        `location`, `layer`, `attributes`) and for each argument (negative numbers; `name` is
        `argument`), and an edge for each use (`operand` is its index, `type` its type).
    """
    graph: nx.MultiDiGraph[int] = nx.MultiDiGraph()
    makers: dict[ir.Value, int] = {}
    block = function.regions[0].blocks[0]
    for index, argument in enumerate(block.arguments):
        node = -1 - index
        graph.add_node(node, name="argument", location="", layer=None, attributes={})
        makers[argument] = node
    for node, op in enumerate(block.operations):
        graph.add_node(
            node,
            name=op.operation.name,
            location=str(op.location),
            layer=get(op, "infc.layer"),
            attributes=attributes_of(op),
        )
        for index, operand in enumerate(op.operation.operands):
            graph.add_edge(makers[operand], node, operand=index, type=str(operand.type))
        for result in op.operation.results:
            makers[result] = node
    return graph
