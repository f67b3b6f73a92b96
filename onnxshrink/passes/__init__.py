"""One public module is one pass and one command. Nothing here is listed by hand."""
