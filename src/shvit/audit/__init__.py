"""Find probable label errors, near-duplicates, and unusable or odd images in a classification dataset."""
