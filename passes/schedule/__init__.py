"""Programs become launches of kernels, each with the mapping that the cost model chose."""
