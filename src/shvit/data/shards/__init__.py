"""WebDataset shards: reading, writing and downloading them."""
