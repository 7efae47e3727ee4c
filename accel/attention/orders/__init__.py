"""Permutations of tokens that bring together what belongs together."""
