"""The operator as functions: autograd, dataflows, checks. Tensors in, tensors out."""
