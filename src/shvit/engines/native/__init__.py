"""int8 on CPUs with kernels written for SHViT."""
