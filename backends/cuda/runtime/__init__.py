"""Running programs on a device through the CUDA driver API."""
