"""ART: its attack classes on segmenters, and segmenters as estimators and classifiers of ART."""

from advseg_adapters.art.attacks import ROUTES, ArtAttack, as_classifier, as_estimator, load

__all__ = ["ROUTES", "ArtAttack", "as_classifier", "as_estimator", "load"]
