"""From finished runs to tables: frames, comparisons, significance."""
