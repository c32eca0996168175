"""Measurements of the whole product; run from the repository root."""
