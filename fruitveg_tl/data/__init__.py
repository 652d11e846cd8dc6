"""Images in: from a folder, a public dataset or a generator to one index and one array."""
