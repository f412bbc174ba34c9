"""The errors that quickstudy raises on purpose.

Each message says what was wrong, the value received, and what to do. Anything else that escapes is a defect of
quickstudy itself. All derive from `QuickstudyError`, so a caller can catch one class; the command line prints the
message without a traceback and exits with 2.
"""

from __future__ import annotations


class QuickstudyError(Exception):
    """Base of all errors that quickstudy raises on purpose."""


class MissingExtraError(QuickstudyError):
    """An optional part of the installation is asked for and missing."""


class OptionError(QuickstudyError):
    """An option or recipe is unknown, an option's value cannot be used, or it would do nothing beside the others."""


class ImageSetError(QuickstudyError):
    """The images, their labels or their layout cannot be used as they are."""


class UnusableImageError(QuickstudyError):
    """One image file cannot be used; the message is the reason, fit for a list of skipped files."""


class DownloadError(QuickstudyError):
    """A file cannot be fetched or unpacked, or is not the one that it should be."""


class BackboneError(QuickstudyError):
    """A backbone is unknown, damaged or cannot be built."""


class UnsafeFileError(BackboneError):
    """A file from outside holds something that quickstudy refuses to load."""


class StoreError(QuickstudyError):
    """The store of bottlenecks cannot be read or written."""


class ClusterError(QuickstudyError):
    """A Ray cluster cannot be reached or started, or has lost its workers again and again."""


class ModelError(QuickstudyError):
    """A model file is missing, damaged, of another kind, or fails its golden checks."""


class HeadError(QuickstudyError):
    """The head cannot be fitted to what it was given."""


class PlanError(QuickstudyError):
    """Fine-tuning does not fit the time or the disk space that it is given."""


class RunError(QuickstudyError):
    """A run's folder cannot be used: in use, of another recipe, or without a checkpoint that is whole."""


class TrainingError(QuickstudyError):
    """A training cannot go on; what was saved before stays."""


class SweepError(QuickstudyError):
    """A sweep's study, results or workers cannot be used."""


class AuditError(QuickstudyError):
    """A plan of an audit cannot be read, written or carried out."""


class ServingError(QuickstudyError):
    """A server cannot be started as asked."""
