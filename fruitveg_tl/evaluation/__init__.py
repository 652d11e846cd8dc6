"""Evaluation: from stored probabilities to scores and comparisons."""
