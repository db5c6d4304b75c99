"""Tests of spike_kit.bench."""
