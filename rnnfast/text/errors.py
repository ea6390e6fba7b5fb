"""The error for text, settings or files that cannot be used."""


class InputError(ValueError):
    """What the user gave cannot be used; the message is one line that says what came and why not.

    The command line prints it as it stands and exits with code 2.
    """
