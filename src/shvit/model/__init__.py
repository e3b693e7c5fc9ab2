"""The network: pure torch, no files, no images."""
