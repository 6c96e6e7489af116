"""The errors that the store raises.

StoreError
├── SpecError              an inconsistent FeatureSpec
│   └── SpecMismatch       two specs that had to be the same are not
├── MissingEntry           features or labels that were never written
├── DamagedEntry           stored data that differ from what was written
├── DamagedModel           a file of a model that is not the one its manifest names
├── FormatError            a store in a format that this version cannot read
├── NonFiniteFeatures      NaN or infinity where a number was expected
├── StoreBusy              another process holds what was asked for
├── StoreFull              no room for what is to be written
└── StoreUnavailable       object storage refuses access or does not answer
"""


class StoreError(Exception):
    """Base class of all errors of the store; the message says what to do."""


class SpecError(StoreError, ValueError):
    """A FeatureSpec whose fields contradict each other."""


class SpecMismatch(SpecError):
    """Features of one spec were offered where another spec was expected."""


class MissingEntry(StoreError, LookupError):
    """The store does not hold what was asked for."""


class DamagedEntry(StoreError):
    """Stored bytes differ from those that were written; the message says where, such as the image and block."""


class DamagedModel(StoreError):
    """A file of a model differs from the one that the model's manifest names."""


class FormatError(StoreError):
    """The store was written in a format that this version cannot read."""


class NonFiniteFeatures(StoreError, ArithmeticError):
    """A feature map holds NaN or infinity; the message names the block."""


class StoreBusy(StoreError):
    """Another process held what was asked for longer than the caller was willing to wait."""


class StoreFull(StoreError, OSError):
    """There is no room for the bytes that are to be written."""


class StoreUnavailable(StoreError, OSError):
    """Object storage refuses access, fails, or does not answer in time."""
