"""Recommendation with LLM profiles inside knowledge graphs: SPiKE, its ablations and its baselines."""

__version__ = "0.1.0"
