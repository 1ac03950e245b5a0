"""Checkpoints that survive a crash in the middle of a save, and are never used unverified."""
