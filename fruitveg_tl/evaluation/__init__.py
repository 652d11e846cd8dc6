"""Numbers out: from stored probabilities to scores, comparisons and findings."""
