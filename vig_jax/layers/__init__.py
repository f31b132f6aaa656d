"""Modules smaller than a model."""
