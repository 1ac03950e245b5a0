"""Hugging Face models: loading, layers, freezing."""
