"""Data sets: a folder, a public data set or a generator becomes one index and one array."""
