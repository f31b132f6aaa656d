"""Timings of the library's operators, printed only after a correctness check."""
