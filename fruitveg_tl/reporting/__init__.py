"""What a reader sees: tables, figures, notebooks and the report bound from them."""
