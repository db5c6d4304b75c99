"""Tests of spike_kit.profiles."""
