"""What every op means, in NumPy: `ops`, the quantised activations `a8`, the cache `kv`, and the
`interpreter` that runs a module of any level down to *memory*."""
