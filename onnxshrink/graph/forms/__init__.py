"""How a weight can be stored, and the nodes that rebuild it."""
