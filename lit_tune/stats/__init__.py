"""Pure functions and state machines on numbers."""
