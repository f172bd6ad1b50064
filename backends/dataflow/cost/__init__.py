"""How long programs of the machine take, from the workload, the machine's figures and the mapping.

It knows what the code generator makes of a model (`codegen`), and nothing of the simulator:
`benchmarks/dataflow_cost.py` fits its constants to simulated times and judges it by others.
"""
