"""Symmetry: what leaves the target's function unchanged, read off its graph once."""
