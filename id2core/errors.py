"""Mistakes that a user can mend, as one tree of exceptions.

```
ID2Error
├── OptionError            an option out of bounds, or options that exclude one another
├── MissingExtraError      a package that an optional part needs is not installed
├── PrefectServerError     PREFECT_API_URL names a server that does not answer
├── WebhookError           ID2_WEBHOOK_URL is not allowed, or takes no message
├── NightError             a night that ran, and whose result cannot be relied on
├── StorageError           a folder, bucket or object that cannot be listed, read or written
│   ├── StoreUnavailableError  a store that does not answer for a while (worth another try)
│   ├── ChangedObjectError     an object that was replaced while it was read (worth another try)
│   └── EmptyPlaceError        a folder or prefix that does not exist or holds nothing
├── DatasetError           a data set that is missing, damaged, or made with something else
├── LostRowsError          a run that lost or doubled rows; nothing was committed (worth another try)
├── RunInProgressError     another run adds rows of the same source to the same --out
├── EngineError            a cluster that does not answer, or fails a job (worth another try)
├── EncoderError           an encoder that cannot be loaded or run
├── TransformError         a W that cannot be loaded or does not fit
├── SearchError            a search that cannot run
│   └── RecallError            a compressed index that finds too few of the best references
├── TruthError             a truth file that cannot be read or does not fit
├── CalibrationError       thresholds that cannot be made, read or applied
│   └── NormalizationError     a background that cannot normalize these scores
├── TranslatorError        a diffusion model that cannot be loaded or run
├── PromptError            prompts that cannot be read or fetched
├── ReaderError            a public data set in another layout than expected
├── TrainError             a training that cannot start or go on
│   ├── PairsError             data sets that give no origins with translations
│   ├── ClosedFormError        latents from which no closed form follows
│   ├── GradientError          options or latents that gradient descent cannot use
│   └── FinetuneError          pictures from which no backbone can be trained
└── ExperimentError        an experiment that cannot be measured
    ├── PlotError              figures that cannot be drawn
    └── TheoryError            latents on which a theorem cannot be checked
```

A command shows the message of these alone and exits with 1; a flow does not retry them, but for those that
are `transient`. Any other exception is a bug: it keeps its traceback, and a flow retries it. What a single
object of a corpus does wrong is no exception but a row of `rejects/` (`store.rejects`).
"""

from __future__ import annotations

from typing import ClassVar


def printable(text: str) -> str:
    """Return text for one line of a terminal or a log: names and servers may have written parts of it.

    Line breaks become spaces; characters that control a terminal or change the direction of writing are
    spelled out.
    """
    line = " ".join(part.strip() for part in text.splitlines()) if not text.isprintable() else text
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


class ID2Error(Exception):
    """A mistake that whoever runs this can mend; the message says how.

    Attributes:
        transient: whether the same call may succeed later.
    """

    transient: ClassVar[bool] = False


class OptionError(ID2Error):
    """An option out of bounds, or options that exclude one another."""


class MissingExtraError(ID2Error):
    """A package that an optional part needs is not installed."""


class PrefectServerError(ID2Error):
    """PREFECT_API_URL names a server that does not answer."""


class WebhookError(ID2Error):
    """An address that messages are not sent to, or a server that takes none."""


class NightError(ID2Error):
    """A night that ran, and whose result cannot be relied on: known pairs were not found, or rates moved."""


class StorageError(ID2Error):
    """A folder, bucket or object that cannot be listed, read or written."""


class StoreUnavailableError(StorageError):
    """A store that did not answer, or not whole, in all attempts."""

    transient = True


class ChangedObjectError(StorageError):
    """An object is another version than the one that was listed."""

    transient = True


class EmptyPlaceError(StorageError):
    """A folder or prefix that does not exist, or holds no object."""


class DatasetError(ID2Error):
    """A data set that is missing, damaged, or made with something else."""


class LostRowsError(ID2Error):
    """A run that lost or doubled rows; nothing was committed."""

    transient = True


class RunInProgressError(ID2Error):
    """Another run adds rows of the same source to the same place."""


class EngineError(ID2Error):
    """A job server that does not answer, or an engine that refuses or fails a job."""

    transient = True


class EncoderError(ID2Error):
    """An encoder that cannot be loaded or run."""


class TransformError(ID2Error):
    """A W that cannot be loaded or does not fit."""


class SearchError(ID2Error):
    """A search that cannot run."""


class RecallError(SearchError):
    """A compressed index that finds too few of the best references."""


class TruthError(ID2Error):
    """A truth file that cannot be read or does not fit."""


class CalibrationError(ID2Error):
    """Thresholds that cannot be made, read or applied.

    Attributes:
        missing: queries without origin that must be added, where there are too few.
    """

    def __init__(self, message: str, missing: int = 0) -> None:
        super().__init__(message)
        self.missing = missing


class NormalizationError(CalibrationError):
    """A background that cannot normalize these scores."""


class TranslatorError(ID2Error):
    """A diffusion model that cannot be loaded or run."""


class PromptError(ID2Error):
    """Prompts that cannot be read or fetched."""


class ReaderError(ID2Error):
    """A public data set in another layout than expected."""


class TrainError(ID2Error):
    """A training that cannot start or go on."""


class PairsError(TrainError):
    """Data sets that give no origins with translations."""


class ClosedFormError(TrainError):
    """Latents from which no closed form follows."""


class GradientError(TrainError):
    """Options or latents that gradient descent cannot use."""


class FinetuneError(TrainError):
    """Pictures from which no backbone can be trained."""


class ExperimentError(ID2Error):
    """An experiment that cannot be measured."""


class PlotError(ExperimentError):
    """Figures that cannot be drawn."""


class TheoryError(ExperimentError):
    """Latents on which a theorem cannot be checked."""
