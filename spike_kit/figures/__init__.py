"""Paper figures: one function per figure, each returns a matplotlib figure; `export` writes it."""
