"""The errors that quickstudy raises on purpose, by their cause.

Each message says what was wrong, the value received, and what to do. All derive from `QuickstudyError`, and from one of
three that tell a caller where to look: `InputError` (what was given), `InstallationError` (what is installed) and
`MachineError` (this machine, its disks, devices and networks). Anything else that escapes is a defect of quickstudy
itself. The command line prints the message without a traceback and exits with 2.
"""

from __future__ import annotations

import re


class QuickstudyError(Exception):
    """Base of all errors that quickstudy raises on purpose."""


class InputError(QuickstudyError):
    """What was given cannot be used as it is: images, options or files. Other input helps."""


class InstallationError(QuickstudyError):
    """A part of the installation is missing. Installing it helps."""


class MachineError(QuickstudyError):
    """This machine, a disk, a device or a network cannot do what is asked. The same may work elsewhere, or later."""


class OptionError(InputError):
    """An option or recipe is unknown, an option's value cannot be used, or it would do nothing beside the others."""


class ImageSetError(InputError):
    """The images, their labels or their layout cannot be used as they are."""


class UnusableImageError(InputError):
    """One image file cannot be used; the message is the reason, fit for a list of skipped files."""


class BackboneError(InputError):
    """A backbone is unknown, damaged or cannot be built."""


class UnsafeFileError(BackboneError):
    """A file from outside holds something that quickstudy refuses to load."""


class ModelError(InputError):
    """A model file is missing, damaged, of another kind, or fails its golden checks."""


class HeadError(InputError):
    """The head cannot be fitted to what it was given."""


class PlanError(InputError):
    """Fine-tuning does not fit the time or the disk space that it is given."""


class RunError(InputError):
    """A run's folder cannot be used: in use, of another recipe, or without a checkpoint that is whole."""


class TrainingError(InputError):
    """A training cannot go on with these options; what was saved before stays."""


class SweepError(InputError):
    """A sweep's study or results cannot be used."""


class AuditError(InputError):
    """A plan of an audit cannot be read or carried out."""


class LabellingError(InputError):
    """Labels cannot be taken: the journal is damaged or in use, or what was sent names no photo or class."""


class MissingExtraError(InstallationError):
    """An optional part of the installation is asked for and missing."""


class WriteError(MachineError):
    """A file cannot be written where it is to go; nothing that was there before is lost."""


class StoreError(MachineError):
    """The store of bottlenecks cannot be read or written."""


class DeviceError(MachineError):
    """There is no such device here, or it cannot be used."""


class DownloadError(MachineError):
    """A file cannot be fetched or unpacked, or is not the one that it should be."""


class ClusterError(MachineError):
    """A Ray cluster cannot be reached or started, or has lost its workers again and again."""


class ServingError(MachineError):
    """A server cannot listen where it is to."""


def first_line(error: BaseException) -> str:
    """Take the first line of a message, without colours; the name of the error's kind where it says nothing.

    Libraries append pages to it, and what they quote of a file may be long: 300 characters are kept.
    """
    told = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return (told.splitlines() or [type(error).__name__])[0][:300]
