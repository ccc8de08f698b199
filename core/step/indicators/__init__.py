"""Estimates of the output's change: one file a level."""
