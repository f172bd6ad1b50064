"""What each kind of kernel does on a GPU, as device functions."""
