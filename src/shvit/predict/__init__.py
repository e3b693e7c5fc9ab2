"""Using a model on images: predictions, tables of them, and drawings."""
