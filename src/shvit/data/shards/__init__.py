"""Read, write and download WebDataset shards."""
