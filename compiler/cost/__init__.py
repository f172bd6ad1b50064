"""What work costs on a target: seconds with bounds, and which resource binds.

`workload` is the expected use, `estimate` the answer and its arithmetic, `roofline` the model of
what runs here, `kernels` that of measured chips, fitted by `fit`. A model served on them:
`model_shape` (its sizes), `transformer` (the kernels of a step), `footprint` (its memory), `engine`
(what a serving engine adds), `serving` (many users), `bounds` (how sure that is), `deployment` (all
of it together), `disaggregation` (the phases apart), `assumptions`; `calibrations` finds profiles.
`kernels` has the fitted models of single kernels, `fit` fits them (docs/cost-model.md).
"""
