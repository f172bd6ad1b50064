"""Machine descriptions, what a backend is, and how both are found.

`units` reads quantities, `schema` is what a target may say, `loader` reads target files,
`backend` and `runnable` are the contracts of a backend, `discovery` finds backends and targets.
"""
