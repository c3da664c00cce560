"""Whole networks: converted or built by hand, resized, tuned, discretized, served."""
