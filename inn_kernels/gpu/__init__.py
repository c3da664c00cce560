"""Triton kernels of the operations, one file each."""
