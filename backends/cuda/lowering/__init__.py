"""From the memory level to functions and kernels of a GPU."""
