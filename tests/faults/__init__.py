"""One-line faults that the tests must catch: ``python -m tests.faults``."""
