"""What the frozen part of a model gives, computed once for each row."""
