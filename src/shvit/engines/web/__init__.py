"""The format `web`: a folder with a page that runs the model in a browser."""
