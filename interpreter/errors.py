"""Everything that can go wrong between features and masks.

InterpreterError
├── ConfigurationError     settings that contradict each other or the features
├── CheckpointError        an interpreter that cannot be loaded
├── DataError              images, labels or features that are needed are missing
├── NonFinitePrediction    the interpreter computed NaN or infinity
├── ExtractionFailed       `extractor run` did not make all features that are needed
├── TrainingDiverged       the loss or the output became NaN or infinite
└── ScanUnavailable        the selective scan that was asked for cannot run here
"""


class InterpreterError(Exception):
    """Base of all errors of the interpreter; the message says what to do."""


class ConfigurationError(InterpreterError, ValueError):
    """These settings contradict each other or the features."""


class CheckpointError(InterpreterError, ValueError):
    """The interpreter's files are missing or damaged, or do not fit together."""


class DataError(InterpreterError, LookupError):
    """Images, labels or features that are needed are not in the store, or too few."""


class NonFinitePrediction(InterpreterError, ArithmeticError):
    """The interpreter computed NaN or infinity for a photograph."""


class ExtractionFailed(InterpreterError, RuntimeError):
    """``extractor run`` ended with an error, or left out photographs that are needed."""


class TrainingDiverged(InterpreterError, ArithmeticError):
    """The loss, or the network's output for a validation image, became NaN or infinite."""


class ScanUnavailable(InterpreterError, RuntimeError):
    """The requested selective scan cannot run on these tensors."""
