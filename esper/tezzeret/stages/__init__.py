"""The seven stages of a blueprint document: parsed, costed, compiled, proven, measured, packaged and stored."""

from esper.tezzeret.stages.admission import admit, document_of
from esper.tezzeret.stages.building import check_contract, form_of
from esper.tezzeret.stages.fetching import ReadyBlueprint, fetch
from esper.tezzeret.stages.forms import BlueprintForm, Subject, eager_form, subject_of
from esper.tezzeret.stages.isolation import CompilerChild, Confines
from esper.tezzeret.stages.observer import CompileObserver as CompileObserver
from esper.tezzeret.stages.package import BlueprintPackage, PackageError, unpack
from esper.tezzeret.stages.pipeline import compile_document
from esper.tezzeret.stages.refusal import REASONS, ArtefactRefused
from esper.tezzeret.stages.reports import NAMES, STAGES, VALIDATION, StageReport
from esper.tezzeret.stages.request import BACKENDS, DTYPES, CompileJob
from esper.tezzeret.stages.validation import TOLERANCE, validate
from esper.tezzeret.stages.worker import CompileWorker, Finished, enqueue

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
    "CompileJob",
    "CompileWorker",
    "CompilerChild",
    "Confines",
    "Finished",
    "PackageError",
    "ReadyBlueprint",
    "StageReport",
    "Subject",
    "admit",
    "check_contract",
    "compile_document",
    "document_of",
    "eager_form",
    "enqueue",
    "fetch",
    "form_of",
    "subject_of",
    "unpack",
    "validate",
]
