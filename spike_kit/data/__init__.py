"""From raw files to data-set folders: sources, reorganisation, splits, graphs."""

TEMPLATE = "template"
"""Profile set that the kit writes without a language model; it costs nothing to write again."""
