"""From a name on disk to batches of tensors; knows no model."""
