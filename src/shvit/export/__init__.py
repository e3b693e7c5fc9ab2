"""Writing a model for another runtime, and comparing the file with PyTorch."""
