"""What work costs on a target: seconds with bounds, and which resource binds.

`workload` is the expected use, `estimate` the answer and its arithmetic, `roofline` the model.
"""
