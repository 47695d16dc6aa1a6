"""The exceptions a user of placeray can meet.

Every error carries exactly one string, a sentence that says what is wrong, where, and what to do: such an
exception pickles across Ray processes without loss.
"""


class PlacerayError(Exception):
    """Base of all errors that placeray raises on purpose."""

    def __init__(self, message: str) -> None:
        super().__init__(message)

    def __str__(self) -> str:
        return str(self.args[0])


class ConfigError(PlacerayError):
    """A config file, key or value cannot be used."""


class ContractError(PlacerayError):
    """A table or document does not fit its contract in `schemas/`."""


class DataError(PlacerayError):
    """Input data is missing, empty or broken beyond the stated threshold."""


class StorageError(PlacerayError):
    """A file or folder cannot be read, written or found."""


class CheckpointError(PlacerayError):
    """A checkpoint is damaged, incomplete or of another model."""


class MapError(PlacerayError):
    """A map (index) is damaged, of a newer format, or made by another model."""


class TrainingError(PlacerayError):
    """Training cannot go on: a loss that is not finite, no usable place, a lost worker."""
