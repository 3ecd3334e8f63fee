"""Algebra on state dicts: what several fusion methods share. Needs torch and nothing else."""
