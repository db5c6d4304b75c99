"""Profiles: facts into text, text into vectors."""
