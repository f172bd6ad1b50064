"""What one kernel takes on one chip: a few constants a class of kernels, fitted to measurements.

`queries` says what is asked, `machine` which facts of a target answer it, `constants` what may be
fitted and in which range, `profile` holds fitted values with their residuals. `gemm`,
`prefill_attention`, `decode_attention`, `collectives` and `elementwise` are the classes, `classes`
lists them, and `predict` puts an estimate together. The formulas are explained in
docs/cost-model.md.
"""
