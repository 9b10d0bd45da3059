"""Stage 1: from bytes to a document, every field checked; nothing is allocated, and no sites are known."""

import math
from collections.abc import Iterable
from typing import Any

from esper.tezzeret.blueprints.document import (
    FORMAT,
    INITS,
    RANKS,
    SOURCE_NAMES,
    SOURCES,
    TARGET_NAMES,
    Call,
    Document,
    Form,
    Setting,
    SiteCase,
    TensorRow,
)
from esper.tezzeret.blueprints.fields import LOWER, ObjectFields
from esper.tezzeret.blueprints.names import check_document
from esper.tezzeret.blueprints.operations import OPERATIONS
from esper.tezzeret.blueprints.refusals import LIMITS, PARSE, DocumentError, DocumentLimits
from esper.tezzeret.blueprints.sizes import FUNCTIONS, Size
from esper.tezzeret.blueprints.strict_json import read_json
from esper.utils.documents import shown

MOST_CASES = 16
MOST_ROWS = 1000
MOST_SIZES = 64


def parse(data: bytes, place: str, limits: DocumentLimits = LIMITS) -> Document:
    """Read a document and check whatever does not depend on the sites.

    Args:
      data: JSON in UTF-8.
      place: what messages call it, such as the file's name.
      limits: what it may not exceed.

    Raises:
      DocumentError: the first thing that is wrong; stage "parse".
    """
    document = _DocumentReader(place, limits).document(read_json(data, place, limits))
    check_document(document, place)
    return document


class _DocumentReader:
    """A document on its way from JSON's values."""

    def __init__(self, place: str, limits: DocumentLimits) -> None:
        self.place, self.limits = place, limits

    def fields(self, table: Any, node: str) -> ObjectFields:
        return ObjectFields(table, self.place, node, self.limits)

    def named(self, table: Any, kind: str) -> ObjectFields:
        """An object that has a name, which messages about it say."""
        own = self.fields(table, kind)
        own.node = own.name() if "name" in own.table else kind
        return own

    def document(self, table: Any) -> Document:
        own = self.fields(table, "")
        if own.table.get("format") != FORMAT or isinstance(own.table.get("format"), bool):
            own.refuse(f"format {shown(own.table.get('format'))}", f"{FORMAT}")
        own.only(("format", "name", "bypass", "cases"), ("description", "identity_bound"))
        bound = own.number(own.table["identity_bound"], "identity_bound") if "identity_bound" in own.table else None
        if bound is not None and bound < 0:
            own.refuse(f"identity_bound {shown(bound)}", "at least 0")
        bypass = own.flag("bypass")
        described = own.text("description", 100 * self.limits.text) if "description" in own.table else ""
        cases = own.items("cases", MOST_CASES, lambda case: self.case(case, bypass), 1)
        return Document(own.name(form=LOWER), described, bypass, bound, cases)

    def case(self, table: Any, bypass: bool) -> SiteCase:
        own = self.fields(table, "case")
        required = ("source", "target") if bypass else ("source",)
        own.only((*required, "parameters", "train"), ("where", "sizes", "buffers", "infer"))
        sizes = own.items("sizes", MOST_SIZES, self.named_size)
        return SiteCase(
            self.kinds(own, "source", SOURCES),
            self.kinds(own, "target", tuple(RANKS)) if bypass else (),
            own.items("where", MOST_SIZES, lambda text: self.condition(own, text)),
            sizes,
            own.items("parameters", MOST_ROWS, lambda row: self.row(row, "parameter"), 1),
            own.items("buffers", MOST_ROWS, lambda row: self.row(row, "buffer")),
            self.form(own.table["train"], True),
            self.form(own.table["infer"], False) if "infer" in own.table else None,
        )

    def kinds(self, own: ObjectFields, name: str, known: Iterable[str]) -> tuple[str, ...]:
        allowed = tuple(known)

        def read(kind: Any) -> str:
            if kind not in allowed:
                own.refuse(f"{name} {shown(kind)}", f"kinds among {', '.join(allowed)}")
            return str(kind)

        found = own.items(name, len(allowed), read, 1)
        if len(set(found)) < len(found):
            own.refuse(f"{name} {shown(list(found))}", "every kind once")
        return found

    def condition(self, own: ObjectFields, text: Any) -> str:
        if not isinstance(text, str):
            own.refuse(f"where {shown(text)}", "conditions, such as 'channels > 1'")
        return str(own.size(text, "where"))

    def named_size(self, table: Any) -> tuple[str, Size]:
        own = self.fields(table, "size")
        own.only(("name", "value"))
        name = own.name(form=LOWER)
        if name in (*SOURCE_NAMES, *TARGET_NAMES, *FUNCTIONS, "over", "over_root"):
            own.refuse(f"size {name!r}, which has a meaning", "a name of its own")
        return name, own.size(own.table["value"], f"size {name!r}")

    def row(self, table: Any, kind: str) -> TensorRow:
        own = self.named(table, kind)
        own.only(("name", "shape", "init"), ("scale", "values"))
        name, shape = own.node, own.shape(own.table["shape"], "shape")
        init = own.text("init", self.limits.text, INITS if kind == "parameter" else ("constant",))
        if init in ("given", "shuffled"):
            own.only(("name", "shape", "init", "values"))
            values = own.items("values", self.limits.parameters, lambda value: own.number(value, "values"))
            if not all(isinstance(side, int) for side in shape):
                own.refuse(f"shape {shown(list(shape))} of given values", "numbers")
            return TensorRow(name, shape, init, 0.0, values)
        own.only(("name", "shape", "init", "scale"))
        return TensorRow(name, shape, init, own.real(own.table["scale"], "scale"))

    def form(self, table: Any, is_training: bool) -> Form:
        own = self.fields(table, "train" if is_training else "infer")
        own.only(("nodes", "output"), ("buffers",) if is_training else ())
        nodes = own.items("nodes", self.limits.nodes, lambda node: self.call(node, is_training))
        new = self.fields(own.table.get("buffers", {}), own.node)
        pairs = tuple((new.as_name(name, "buffer"), new.name(name)) for name in sorted(new.table))
        return Form(nodes, own.name("output"), pairs)

    def call(self, table: Any, is_training: bool) -> Call:
        own = self.named(table, "node")
        for field in ("name", "op", "inputs"):
            if field not in own.table:
                own.refuse(f"no field {field!r}", "name, op, inputs")
        op = own.text("op", self.limits.text, OPERATIONS)
        known = OPERATIONS[op]
        required = [field for field, attribute in known.attributes.items() if attribute.required]
        own.only(("name", "op", "inputs", *required), known.attributes)
        if is_training not in known.forms:
            own.refuse(f"{op} in inference", "it in training alone")
        least, most = known.inputs[0], known.inputs[-1]
        inputs = own.items("inputs", most, lambda each: own.as_name(each, "input"), least)
        given = sorted((field, value) for field, value in table.items() if field in known.attributes)
        return Call(
            own.node,
            op,
            inputs,
            tuple((field, self.setting(own, known.attributes[field].kind, field, value)) for field, value in given),
        )

    def setting(self, own: ObjectFields, kind: str, field: str, value: Any) -> Setting:
        """An attribute's value, by its kind."""
        if kind == "size":
            return own.size(value, field)
        if kind == "shape":
            return own.shape(value, field)
        if kind == "flag":
            return own.flag(field)
        if kind == "real":
            return own.real(value, field)
        if kind == "share":
            share = own.number(value, field)
            return share if 0 <= share < 1 else own.refuse(f"{field} {shown(value)}", "from 0, below 1")
        if kind == "numbers":
            return own.items(
                field, self.limits.activations, lambda each: -math.inf if each == "-inf" else own.number(each, field)
            )
        return own.items(field, self.limits.activations, lambda each: self.index(own, each))

    def index(self, own: ObjectFields, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value <= self.limits.activations:
            raise DocumentError(self.place, PARSE, own.node, f"index {shown(value)}", "places from 0, or -1")
        return value
