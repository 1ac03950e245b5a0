"""Durable checkpoints and exact resume (the seam; Lightning's own checkpoints for now)."""
