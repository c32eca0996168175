"""Videos: read, followed, protected and written frame by frame."""
