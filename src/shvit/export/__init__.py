"""Export to other runtimes, and the checks of exported files."""
