"""What can be told of a graph without running it: shapes, costs, operands."""
