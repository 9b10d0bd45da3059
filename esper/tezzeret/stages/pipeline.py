"""The seven stages one after the other: from a document's bytes to an id in a store."""

from collections.abc import Callable
from typing import Any

from esper.tezzeret.blueprints import Costs, Document, canonical, infer, parse
from esper.tezzeret.blueprints.site_words import pair_for, pair_of, words_of
from esper.tezzeret.stages.building import Built, build, work_of
from esper.tezzeret.stages.isolation import CompilerChild
from esper.tezzeret.stages.package import CODE, KIND, unpack
from esper.tezzeret.stages.reports import NAMES, STAGES, ReportLog, StageFailed, StageReport
from esper.tezzeret.stages.request import CompileJob, key_text
from esper.urza.store import Artefact, Tiers, id_of
from esper.version import __version__

Result = tuple[str | None, tuple[StageReport, ...]]


def compile_document(
    request: CompileJob,
    store: Tiers | None,
    child: CompilerChild | None = None,
    told: Callable[[StageReport], None] = lambda report: None,
    begun: Callable[[str], None] = lambda stage: None,
) -> Result:
    """Take a document through the seven stages; or find that this was done before.

    Args:
      request: the document, and what for.
      store: where it is kept, and looked for; None: stage 7 is left out, and so is the search.
      child: the process in which a stranger's document is compiled; None: in this one.
      told: hears every report as soon as there is one.
      begun: hears of every stage that begins, of a child's too.

    Returns:
      its id in the store, None where a stage failed or there is no store; and the reports in order. Equal requests
      that come at the same time, from this process or others, are compiled once.
    """
    log = _ToldLog(told, begun)
    try:
        document, request, key = examine(request, log)
        if store is None:
            _built(request, document, key, log, child)
            return None, tuple(log.reports)
        return _once(request, document, key, log, store, child), tuple(log.reports)
    except StageFailed as error:
        if error.report not in log.reports:
            log.add(error.report)
        return None, tuple(log.reports)


class _ToldLog(ReportLog):
    """A log whose reports are told when they are there."""

    def __init__(self, told: Callable[[StageReport], None], begun: Callable[[str], None]) -> None:
        super().__init__(begun)
        self.hears = told

    def add(self, report: StageReport) -> None:
        super().add(report)
        self.hears(report)


def examine(request: CompileJob, log: ReportLog) -> tuple[Document, CompileJob, str]:
    """Stages 1 and 2: the document, the request with the site that was found, and its key.

    Raises:
      StageFailed: one of them.
    """
    with log.stage(STAGES[0]) as facts:
        request.check()
        document = parse(request.document, request.place)
        facts |= {"name": document.name, "bytes": len(request.document), "cases": len(document.cases)}
    with log.stage(STAGES[1]) as facts:
        site, costs = costs_of(document, request.site)
        facts |= {"site": site, "nodes": len(costs.nodes), "parameters": costs.params}
        facts |= {"buffers": costs.buffers, "flops": costs.flops, "bytes": costs.bytes}
    found = request._replace(site=site)
    return document, found, key_text(found, canonical(document))


def costs_of(document: Document, site: str) -> tuple[str, Costs]:
    """The site that a document is compiled for, in its one spelling, and its costs there.

    Args:
      document: what was parsed.
      site: in words; empty: the first standard one that fits.

    Raises:
      DocumentError, ConfigError: there is none, or it does not fit there.
    """
    pair = pair_of(site) if site else pair_for(document)
    return words_of(*pair), infer(document, *pair)


def _built(request: CompileJob, document: Document, key: str, log: ReportLog, child: CompilerChild | None) -> Built:
    """Stages 3 to 6, here or in a child."""
    if child is None:
        return build(work_of(request, document, key), log)
    answer = child.ask(request, key, log.told)
    for report in answer.reports:
        log.add(report)
    if answer.failed is not None:
        raise StageFailed(answer.failed)
    package = unpack(answer.package)
    if package.facts.get("key") != key or canonical(package.document) != canonical(document):
        raise StageFailed(StageReport(STAGES[5], False, 0.0, {}, found="a package of another request", expected=key))
    return Built(answer.package, answer.code)


def find(store: Tiers, key: str) -> Artefact | None:
    """The newest sound package of a key."""
    for entry in reversed(store.list(kind=KIND, key=key)):
        found = store.get(entry.id, KIND)
        if isinstance(found, Artefact):
            return found
    return None


def _once(
    request: CompileJob, document: Document, key: str, log: ReportLog, store: Tiers, child: CompilerChild | None
) -> str:
    made = list[str]()

    def make() -> str:
        built = _built(request, document, key, log, child)
        with log.stage(STAGES[6]) as facts:
            made.append(keep(store, built, document.name, key))
            facts["id"] = made[0]
        return made[0]

    def sought() -> str | None:
        found = find(store, key)
        return None if found is None else found.id

    flight = f"compile/{key}"
    id = store.ready.get(flight, lambda: store.flights.once(key, sought, make))
    store.ready.drop(flight)
    if not made:
        for name in NAMES[2:]:
            log.add(StageReport(name, True, 0.0, {"cached": id[:16]}))
    return id


def keep(store: Tiers, built: Built, name: str, key: str) -> str:
    """Stage 7: compiled code, which is worth nothing alone, then the package."""
    facts: dict[str, Any] = {"name": name, "version": __version__, "validated": True, "key": key}
    if built.code:
        store.put(built.code, facts | {"kind": CODE, "package": id_of(built.package)})
    about = unpack(built.package).facts
    return store.put(built.package, about | facts | {"kind": KIND})
