"""What names of a document refer to: each once, each known, each before its use."""

from collections.abc import Iterable, Iterator
from typing import NoReturn

from esper.tezzeret.blueprints.document import INPUT, SOURCE_NAMES, TARGET_NAMES, Document, Form, SiteCase, TensorRow
from esper.tezzeret.blueprints.refusals import PARSE, DocumentError
from esper.tezzeret.blueprints.sizes import Size, SizeError, evaluate, names_in


def check_document(document: Document, place: str) -> None:
    """Check names, sizes and order.

    Raises:
      DocumentError: the first name that stands twice, is not known, or comes before what it names.
    """
    for case in document.cases:
        _Names(document, case, place).check()


def sizes_in(values: Iterable[object]) -> Iterator[Size]:
    """The expressions among attributes' values."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, tuple) and value and value[0] in ("over_root", "over"):
            yield value[1]
        elif isinstance(value, tuple):
            yield from (each for each in value if isinstance(each, str))


class _Names:
    """One case."""

    def __init__(self, document: Document, case: SiteCase, place: str) -> None:
        self.document, self.case, self.place = document, case, place
        self.sites = (*SOURCE_NAMES, *(TARGET_NAMES if document.bypass else ()))
        self.sizes: list[str] = list(self.sites)

    def refuse(self, node: str, found: str, expected: str) -> NoReturn:
        raise DocumentError(self.place, PARSE, node, found, expected)

    def check(self) -> None:
        case = self.case
        for name, value in case.sizes:
            self.known(f"size {name}", [value])
            if name in self.sizes:
                self.refuse(f"size {name}", "a name that stands twice", "every size once")
            self.sizes.append(name)
        for condition in case.where:
            self.known("where", [condition])
        seen: set[str] = {INPUT}
        for row in (*case.parameters, *case.buffers):
            self.once(row.name, seen)
            self.row(row)
        for is_training in (True, False):
            self.form(case.form(is_training), set(seen), "train" if is_training else "infer")

    def once(self, name: str, seen: set[str]) -> None:
        if name in seen:
            self.refuse(name, "a name that stands twice", "every parameter, buffer and node once, and x for the input")
        seen.add(name)

    def known(self, node: str, values: Iterable[Size]) -> None:
        """Every name of the expressions is a size."""
        for value in values:
            for name in sorted(names_in(value)):
                if name not in self.sizes:
                    self.refuse(node, f"unknown size {name!r} in {value!r}", f"one of {', '.join(self.sizes)}")
            if not names_in(value):
                try:
                    evaluate(value, {})
                except SizeError as error:
                    found, _, expected = str(error).partition("; expected ")
                    self.refuse(node, f"{found} in {value!r}", expected or "a size")

    def row(self, row: TensorRow) -> None:
        self.known(row.name, sizes_in([row.shape, row.scale]))
        count = 1
        for side in row.shape:
            if isinstance(side, int) and side < 1:
                self.refuse(row.name, f"shape {list(row.shape)}", "sizes from 1")
            count *= side if isinstance(side, int) else 1
        if row.init in ("given", "shuffled") and count != len(row.values):
            self.refuse(row.name, f"{len(row.values)} values of shape {list(row.shape)}", f"{count}")

    def form(self, form: Form, seen: set[str], label: str) -> None:
        later = [call.name for call in form.nodes]
        for number, call in enumerate(form.nodes):
            for name in call.inputs:
                if name == call.name:
                    self.refuse(call.name, "itself among its inputs", "nodes before it")
                if name not in seen:
                    how = "a node that comes later" if name in later[number:] else "no such name"
                    self.refuse(call.name, f"input {name!r}: {how}", "x, a parameter, a buffer or a node before it")
            self.once(call.name, seen)
            values = [value for _, value in call.attributes]
            self.known(call.name, sizes_in(values))
            self.bound(call.name, sizes_in(values))
        if form.output not in seen:
            self.refuse(label, f"output {form.output!r}", "a node's name")
        self.buffers(form, label)

    def buffers(self, form: Form, label: str) -> None:
        """New values are those of buffers, by ``running``."""
        made = {call.name: call for call in form.nodes}
        known = [row.name for row in self.case.buffers]
        for name, node in form.buffers:
            if name not in known:
                self.refuse(label, f"a new value of {name!r}", f"one of {', '.join(known)}" if known else "no buffers")
            if node not in made or made[node].op != "running" or made[node].inputs[0] != name:
                self.refuse(label, f"{node!r} as the new {name!r}", f"a node of running that reads {name!r} first")
        missing = [name for name in known if name not in dict(form.buffers)]
        if form.buffers and missing:
            self.refuse(label, f"no new value of {missing[0]!r}", "one of every buffer, or of none")

    def bound(self, node: str, values: Iterable[Size]) -> None:
        """What a node reads of the target is to be known from parameters alone: a seed that runs sees no sites."""
        shown = {side for row in self.case.parameters for side in row.shape}
        for name in sorted(self.behind(values)):
            if name in TARGET_NAMES and name not in shown:
                self.refuse(node, f"the target's {name!r}", "one that is an axis of a parameter, by its bare name")

    def behind(self, values: Iterable[Size]) -> set[str]:
        """The sites' sizes that expressions depend on."""
        table, waiting, found = dict(self.case.sizes), list(values), set[str]()
        while waiting:
            for name in names_in(waiting.pop()):
                if name not in found:
                    found.add(name)
                    waiting += [table[name]] if name in table else []
        return found
