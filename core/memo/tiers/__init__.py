"""Where entries lie: each tier is one file, knows bytes by key, and nothing of values."""
