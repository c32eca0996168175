"""Errors that say in one word what could not be done, and why; all of them are ``ValueError``."""

from __future__ import annotations


class DeDiMError(ValueError):
    """Base of every error this package raises about a photo or a training, as opposed to a wrong argument."""


class NoFaceError(DeDiMError):
    """No face was found, so nothing was protected: never pass such a photo on as protected."""


class FaceTooSmallError(DeDiMError):
    """A face was found but has too few pixels to be changed in a way that would hold."""


class UnreadablePhotoError(DeDiMError):
    """The file is not a photo, is damaged, or is in a format that cannot be read."""


class NotProtectedError(DeDiMError):
    """A face stayed above the threshold, so the photo must not be called protected."""


class TrainingDivergedError(DeDiMError):
    """A loss or gradient of a training is not a finite number; going on would spoil the weights."""
