"""The paper's analyses, as tools for its networks and for others."""
