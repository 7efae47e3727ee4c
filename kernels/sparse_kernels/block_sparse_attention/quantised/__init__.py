"""Attention whose products take 8-bit operands; one file a backend, chosen by the api for a given `precision`."""
