"""The one error a user can cause; free of torch, so that the command line can report it at once."""


class InputError(ValueError):
    """What the user gave cannot be used; the message says what was found, what was expected and what to do."""
