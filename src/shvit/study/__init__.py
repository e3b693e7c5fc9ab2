"""The analyses of the SHViT paper, for its networks and for others."""
