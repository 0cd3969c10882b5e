"""The base of all errors that a user can put right."""


class UserError(Exception):
    """Says in one sentence what is wrong and what to do; commands print it without a traceback."""
