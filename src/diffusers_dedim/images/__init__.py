"""Photo files: read and written as they came, their modes, what of their metadata is kept, and a PNG's chunks."""
