"""Tests of spike_kit; the folders mirror the package."""
