"""What backends that emit machine code through MLIR have in common."""
