"""The frozen part, computed once, and the training of what lies behind it."""
