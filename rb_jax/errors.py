"""The error that is the user's to fix."""


class InputError(ValueError):
    """Bad input: a file, a folder, an instruction or a setting that cannot be used.

    The message is one line that says what is wrong and what to do about it; the command line
    prints it and exits with status 2.
    """
