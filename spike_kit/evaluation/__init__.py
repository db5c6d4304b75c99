"""Full-ranking evaluation and result tables."""
