"""Detect pneumonia on chest radiographs, with calibrated probabilities and honest statistics.

    >>> import pneumoscope
    >>> model = pneumoscope.load_model()
    >>> model.predict("image.jpg").decision

The names in `__all__` are the public API; see the stability policy in the documentation. They are imported on first use, which
keeps `import pneumoscope` fast and independent of PyTorch and ONNX Runtime.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing it from typing is slow
if TYPE_CHECKING:
    from pneumoscope.core import errors
    from pneumoscope.core.errors import PneumoscopeError
    from pneumoscope.core.interval import Interval
    from pneumoscope.core.multiclass_prediction import MulticlassPrediction
    from pneumoscope.core.prediction import Prediction, Rejection
    from pneumoscope.data.label_mapping import LabelMapping
    from pneumoscope.data.labeled_dataset import LabeledDataset, load_dataset
    from pneumoscope.data.predictions_file import PredictionColumns
    from pneumoscope.evaluation.comparison.compare import compare
    from pneumoscope.evaluation.evaluate import evaluate
    from pneumoscope.evaluation.external_predictions import evaluate_predictions
    from pneumoscope.evaluation.multiclass.compare import compare_multiclass
    from pneumoscope.evaluation.multiclass.evaluate import evaluate_multiclass
    from pneumoscope.evaluation.multiclass.external_predictions import evaluate_multiclass_predictions
    from pneumoscope.imaging.preprocess import Preprocessing
    from pneumoscope.inference.model import Model, load_model
    from pneumoscope.inference.multiclass_model import MulticlassModel, load_multiclass_model
    from pneumoscope.inference.saliency import Explanation
    from pneumoscope.inference.writers import to_dataframe
    from pneumoscope.models.factory import create_model
    from pneumoscope.models.registry import list_models
    from pneumoscope.reporting.multiclass_report import report_multiclass
    from pneumoscope.reporting.record_figures import draw_record as draw_record
    from pneumoscope.reporting.report_files import report
    from pneumoscope.training.api import sweep, train

__version__ = "0.1.0"
__all__ = [
    "Explanation",
    "Interval",
    "LabelMapping",
    "LabeledDataset",
    "Model",
    "MulticlassModel",
    "MulticlassPrediction",
    "PneumoscopeError",
    "Prediction",
    "PredictionColumns",
    "Preprocessing",
    "Rejection",
    "__version__",
    "compare",
    "compare_multiclass",
    "create_model",
    "errors",
    "evaluate",
    "evaluate_multiclass",
    "evaluate_multiclass_predictions",
    "evaluate_predictions",
    "list_models",
    "load_dataset",
    "load_model",
    "load_multiclass_model",
    "report",
    "report_multiclass",
    "sweep",
    "to_dataframe",
    "train",
]

_MODULES = {
    "Explanation": "inference.saliency",
    "Interval": "core.interval",
    "LabelMapping": "data.label_mapping",
    "LabeledDataset": "data.labeled_dataset",
    "Model": "inference.model",
    "MulticlassModel": "inference.multiclass_model",
    "MulticlassPrediction": "core.multiclass_prediction",
    "PneumoscopeError": "core.errors",
    "Prediction": "core.prediction",
    "PredictionColumns": "data.predictions_file",
    "Preprocessing": "imaging.preprocess",
    "Rejection": "core.prediction",
    "compare": "evaluation.comparison.compare",
    "compare_multiclass": "evaluation.multiclass.compare",
    "create_model": "models.factory",
    "draw_record": "reporting.record_figures",  # not public; called by `core.with_figures`
    "evaluate": "evaluation.evaluate",
    "evaluate_multiclass": "evaluation.multiclass.evaluate",
    "evaluate_multiclass_predictions": "evaluation.multiclass.external_predictions",
    "evaluate_predictions": "evaluation.external_predictions",
    "list_models": "models.registry",
    "load_dataset": "data.labeled_dataset",
    "load_model": "inference.model",
    "load_multiclass_model": "inference.multiclass_model",
    "report": "reporting.report_files",
    "report_multiclass": "reporting.multiclass_report",
    "sweep": "training.api",
    "to_dataframe": "inference.writers",
    "train": "training.api",
}


# Extra needed by each function.
_EXTRAS = {
    "compare": "evaluate",
    "compare_multiclass": "evaluate",
    "create_model": "train",
    "evaluate": "evaluate",
    "evaluate_multiclass": "evaluate",
    "evaluate_multiclass_predictions": "evaluate",
    "evaluate_predictions": "evaluate",
    "report": "evaluate",
    "report_multiclass": "evaluate",
    "sweep": "train",
    "train": "train",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name == "errors":
        return import_module("pneumoscope.core.errors")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        if name not in _EXTRAS:
            raise
        return _missing(name, error.name or "")
    if name in __all__:
        globals()[name] = value
    return value


def _missing(name: str, module: str) -> object:
    """Return a function that raises when called, so that `help(pneumoscope)` works without extras."""
    from pneumoscope.core.errors import MissingExtraError

    def missing(*_: object, **__: object) -> object:
        raise MissingExtraError(_EXTRAS[name], f"{name}()", module)

    missing.__name__ = missing.__qualname__ = name
    missing.__doc__ = f"Raise `MissingExtraError`: {name} needs the extra [{_EXTRAS[name]}]."
    return missing


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
