"""Short programs, each with its picture: python -m examples.gallery runs them all and rewrites docs/gallery."""
