"""Edits that change no answer."""
