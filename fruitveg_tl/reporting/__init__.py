"""Tables, figures, notebooks and the report."""
