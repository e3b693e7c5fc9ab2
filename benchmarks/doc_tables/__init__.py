"""The measured parts of README and docs, written from results/. `readme.py` puts them into the pages."""
