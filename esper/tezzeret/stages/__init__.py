"""The seven stages of a blueprint document: parsed, costed, compiled, proven, measured, packaged and stored."""

from esper.tezzeret.stages.admission import admit, document_of
from esper.tezzeret.stages.building import check_contract, form_of
from esper.tezzeret.stages.fetching import ReadyBlueprint, fetch
from esper.tezzeret.stages.forms import BlueprintForm, Subject, eager_form, subject_of
from esper.tezzeret.stages.isolation import CompilerChild, Confines
from esper.tezzeret.stages.package import BlueprintPackage, PackageError, unpack
from esper.tezzeret.stages.pipeline import compile_document
from esper.tezzeret.stages.refusal import REASONS, ArtefactRefused
from esper.tezzeret.stages.reports import NAMES, STAGES, VALIDATION, StageReport
from esper.tezzeret.stages.request import BACKENDS, DTYPES, CompileRequest
from esper.tezzeret.stages.validation import TOLERANCE, validate

__all__ = [
    "BACKENDS",
    "DTYPES",
    "NAMES",
    "REASONS",
    "STAGES",
    "TOLERANCE",
    "VALIDATION",
    "ArtefactRefused",
    "BlueprintForm",
    "BlueprintPackage",
    "CompileRequest",
    "CompilerChild",
    "Confines",
    "PackageError",
    "ReadyBlueprint",
    "StageReport",
    "Subject",
    "admit",
    "check_contract",
    "compile_document",
    "document_of",
    "eager_form",
    "fetch",
    "form_of",
    "subject_of",
    "unpack",
    "validate",
]
