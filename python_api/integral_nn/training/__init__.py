"""What training on many devices needs: sizes that agree, points that stay alike, groups of parameters."""
