"""Tests of spike_kit.explore."""
