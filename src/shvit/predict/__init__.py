"""Predict on images, write the result files and draw the results."""
