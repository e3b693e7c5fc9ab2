"""The generated sections of README and docs, from the files in results/. `readme.py` inserts them."""
