"""Everything that can go wrong between features and masks.

InterpreterError
├── ConfigurationError     a network or training that cannot be meant
├── CheckpointError        an interpreter that cannot be loaded
├── TrainingDataError      labels or features that training needs are not there
├── ExtractionFailed       `extractor run` could not make the features of a protocol
├── TrainingDiverged       the loss is no number any more
└── ScanUnavailable        the scan that was forced cannot run here
"""


class InterpreterError(Exception):
    """Base of all errors of the interpreter; the message says what to do."""


class ConfigurationError(InterpreterError, ValueError):
    """These settings contradict each other or the features."""


class CheckpointError(InterpreterError, ValueError):
    """The interpreter's files are missing, damaged or do not fit."""


class TrainingDataError(InterpreterError, LookupError):
    """Labels or features that are needed are not in the store."""


class ExtractionFailed(InterpreterError, RuntimeError):
    """The extractor's command ended with an error."""


class TrainingDiverged(InterpreterError, ArithmeticError):
    """The loss is infinite or no number."""


class ScanUnavailable(InterpreterError, RuntimeError):
    """The requested selective scan cannot run on these tensors."""
