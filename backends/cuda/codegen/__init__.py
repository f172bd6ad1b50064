"""From kernels to PTX and, where an assembler is there, to machine code."""
