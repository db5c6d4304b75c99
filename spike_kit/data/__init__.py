"""From raw files to data-set folders: sources, reorganisation, splits, graphs."""
