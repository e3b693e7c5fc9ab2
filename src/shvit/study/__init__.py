"""The paper's analyses, for its networks and others."""
