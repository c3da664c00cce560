"""Kernels and mathematics of integral neural networks: tensors in, tensors out. No autograd, no modules.

- tensors: what is asked of a tensor that is handed in
- quadrature: partitions and integration rules
- tap_makers: basis, boundary and quadrature folded into a few nodes and weights a point
- uniform_taps: the same of ints, by the compiled library
- taps: checked taps, which are kept
- reference: every operation in plain PyTorch, the specification
- ops: every operation as a PyTorch operator, with its compiled kernels
- transforms: what PyTorch may be doing besides computing
- flops: formulas for PyTorch's counter; not imported here, as the counter imports Triton
- gpu: the operations as Triton kernels
- cost: what each dataflow moves and computes, and the time that makes of it
- calibration: the constants of a machine, measured
- dispatch: which backend can run, which dataflow is cheapest, and why
"""

from inn_kernels import cost, gpu, ops, quadrature, reference, taps, tensors

__version__ = "0.1.0"

__all__ = ["cost", "gpu", "ops", "quadrature", "reference", "taps", "tensors"]
