"""Evolution of recipes: what they are made of, where they are evaluated, what is kept of them."""
