"""Short programs to learn from; each runs by itself."""
