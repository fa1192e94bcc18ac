"""``make results``: declared experiments on generated data, through the real portal, written down as ``docs/results.md``."""
