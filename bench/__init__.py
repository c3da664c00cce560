"""Benchmarks: each dataflow of an integral layer beside the dense layer and grid_sample, error beside every time."""
