"""From one graph to two programs with an explicit KV cache, layers shared by class."""
