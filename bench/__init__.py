"""Benchmarks: each dataflow of an integral layer beside the dense layer and grid_sample, error beside every time."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler counts memory here and should not tell; read by torch
