"""Tests of spike_kit.figures."""
