"""Model and text in, ``core.artifacts.Measurement`` out: what each layer contributes.

    calibration   FILE or TASK=FILE -> windows of tokens, spread evenly over the text
    selftext      text that the model writes itself, when no file is given
    activations   hidden states between layers: one pass a sample feeds every metric that needs them
    tokensets     hidden states -> top-k token sets, through the embedding matrix (LSAQ eq. 1-3)
    weights       metrics of the weights alone: outliers, weight difference
    sensitivity   what predictions lose when one tensor or layer is rounded
    probes        the running model that it is measured on
    rounding_errors, inputs   what other types than the probed one would cost
    journal       finished probes on disk, so that an interrupted measurement goes on
    columns       mean squared activation of each weight column: the importance matrix for rounding
    covariance    how the inputs of weights go together: what rounding makes up for its errors with
    rows          weight rows as float32, a bounded piece at a time, on all cores
    samples       the windows that a measurement reads
    scores        values of samples -> mean and standard error, per task and joint
    settings      what changes a measurement, and how it is computed
    progress      how far it has come
    measurement   the entry: ``measure_model``

    measured = measure_model(read_model(path), ["jaccard"], [parse_calibration("code=code.txt")])
    measured["jaccard"].importance()

Nothing is printed, and nothing is written but the journal that a caller asks for.  To stop a measurement, raise from
``on_progress`` or press Ctrl-C: the model is closed, the threads end with their piece, and nothing else stays behind.
"""

from lamella.measuring.calibration import CalibrationFile, parse_calibration
from lamella.measuring.columns import ImportanceSettings, gather_importance
from lamella.measuring.covariance import DEFAULT_WINDOWS, CovarianceText, covariance_text, gather_covariances
from lamella.measuring.measurement import METRICS, measure_model
from lamella.measuring.sensitivity import nothing_lost
from lamella.measuring.settings import MeasureSettings

__all__ = [
    "DEFAULT_WINDOWS",
    "METRICS",
    "CalibrationFile",
    "CovarianceText",
    "ImportanceSettings",
    "MeasureSettings",
    "covariance_text",
    "gather_covariances",
    "gather_importance",
    "measure_model",
    "nothing_lost",
    "parse_calibration",
]
