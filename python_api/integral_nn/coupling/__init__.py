"""Which dimensions of a network must resize together: read off its shapes, and proved."""
