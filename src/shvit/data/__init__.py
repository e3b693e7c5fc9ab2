"""Open datasets by name, and load batches of tensors from them. Independent of the models."""
