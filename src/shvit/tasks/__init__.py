"""What can be learnt from labelled images."""
