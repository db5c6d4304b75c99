"""Tests of spike_kit.data."""
