"""Tests of spike_kit; the folders mirror the package. No test asks a model hub."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
