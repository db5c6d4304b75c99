"""Runs and comparisons: one configuration in, one run folder out, never twice."""
