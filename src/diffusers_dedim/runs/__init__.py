"""`dedim run`: which photos, where each result goes, and what an output folder remembers."""
