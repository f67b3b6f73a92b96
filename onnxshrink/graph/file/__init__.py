"""Models as files: read, written, and kept as they were."""
