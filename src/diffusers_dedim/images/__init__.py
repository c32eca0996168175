"""Photo files: read and written as they came, their modes, and what of their metadata is kept."""
