"""The frozen part, computed once, and the training of the layers after it."""
