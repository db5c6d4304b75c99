"""Tests of spike_kit.views."""
