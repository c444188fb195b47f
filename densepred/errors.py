"""Errors a user is meant to read: the command line prints their message alone, without a traceback."""


class UserError(Exception):
    """An error whose message already says what was expected, what came, where, and what to do."""


class ConfigurationError(UserError, ValueError):
    """Parts or options that cannot work together."""


class DataError(UserError, ValueError):
    """A file or folder of a data set that is missing, unreadable or not what it should be."""


class LabelError(DataError):
    """A label file that can be read, but holds what is no class."""


class WeightsError(UserError, RuntimeError):
    """Pretrained weights that are not where they should be or do not fit."""


class TrainingError(UserError, RuntimeError):
    """A training that went wrong while it ran: a loss that is not finite or explodes, memory that does not suffice."""
