"""From raw files to study folders: sources, reorganisation, splits, graphs."""
