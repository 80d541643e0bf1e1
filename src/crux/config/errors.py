"""The error class for problems that the user can fix.

Code raises `UserError` deliberately, for a wrong option, a missing or broken file, or a machine that lacks something. The command line
prints it as one line and exits with code 2. Any other exception, a plain ValueError included, is a bug: it keeps its traceback.
"""


class UserError(ValueError):
    """A problem that the user can fix; the message says what is wrong and what to do, in one line."""
