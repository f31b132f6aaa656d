"""Task heads: modules that turn the maps of a backbone into predictions."""
