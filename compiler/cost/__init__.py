"""What work costs on a target: seconds with bounds, and which resource binds.

`workload` is the expected use, `estimate` the answer and its arithmetic, `roofline` the model.
`kernels` has the fitted models of single kernels, `fit` fits them (docs/cost-model.md).
"""
