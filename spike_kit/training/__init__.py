"""Training: the one loop, its saved state, sampling."""
