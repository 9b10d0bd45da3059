"""Blueprints as data: documents that say what a kind of seed is, checked before anything is allocated."""

from esper.tezzeret.blueprints.catalogue import shipped
from esper.tezzeret.blueprints.costs import Costs, NodeCost, infer
from esper.tezzeret.blueprints.document import Document, canonical
from esper.tezzeret.blueprints.eager_form import blueprint_of
from esper.tezzeret.blueprints.from_module import of_module
from esper.tezzeret.blueprints.reading import parse
from esper.tezzeret.blueprints.refusals import LIMITS, DocumentError, DocumentLimits

__all__ = [
    "LIMITS",
    "Costs",
    "Document",
    "DocumentError",
    "DocumentLimits",
    "NodeCost",
    "blueprint_of",
    "canonical",
    "infer",
    "of_module",
    "parse",
    "shipped",
]
