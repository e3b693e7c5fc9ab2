"""The engine for NVIDIA GPUs: one CUDA graph of hand-written Triton kernels."""
