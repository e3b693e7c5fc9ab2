"""Prediction on images, result files and drawings."""
