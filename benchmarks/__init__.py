"""Whole models against those of others; needs more than the project does."""
