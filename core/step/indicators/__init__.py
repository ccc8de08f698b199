"""How far the output has moved: one file a level."""
