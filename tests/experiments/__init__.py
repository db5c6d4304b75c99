"""Tests of spike_kit.experiments."""
