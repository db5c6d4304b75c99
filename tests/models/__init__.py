"""Tests of spike_kit.models."""
