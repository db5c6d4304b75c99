"""Tests of spike_kit.evaluation."""
