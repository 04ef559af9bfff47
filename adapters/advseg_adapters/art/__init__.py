"""ART: its attack classes on segmentation models, and segmentation models as ART estimators and classifiers."""

from advseg_adapters.art.attacks import ROUTES, ArtAttack, as_classifier, as_estimator, load

__all__ = ["ROUTES", "ArtAttack", "as_classifier", "as_estimator", "load"]
