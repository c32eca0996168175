"""Photos in, protected photos and a record of each face out."""
