"""The error of everything that a user gave and that cannot be used."""


class InputError(ValueError):
    """Input that cannot be used; the message is one line: what was given, what is accepted, what to do."""
