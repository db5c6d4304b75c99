"""Tests of spike_kit.results."""
