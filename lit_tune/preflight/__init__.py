"""What can be known to fail before weights load."""
