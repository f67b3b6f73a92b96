"""What each operator is, said once."""
