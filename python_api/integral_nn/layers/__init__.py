"""Axes, the sampled weight, and layers built of both."""
