"""Benchmarks that anyone can repeat: synthetic input of any size, ratios beside seconds."""
