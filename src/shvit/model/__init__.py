"""The networks, in plain PyTorch. They read no files."""
