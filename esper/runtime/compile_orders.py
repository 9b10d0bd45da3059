"""Documents that a worker compiles before a run takes them: ordered through the store's queue, and not waited for."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from esper.leyline.config import ConfigError
from esper.nissa.spans import NO_SPANS, Spans
from esper.runtime.run_blueprints import blueprint_from, document_id
from esper.runtime.scene import Scene
from esper.tezzeret.blueprints import Document, canonical
from esper.tezzeret.blueprints.site_words import words_of
from esper.urza.store import Failure, StoreError, Tiers, open_store
from esper.utils.settings import SettingsError


class CompileOrders:
    """What a run has ordered.

    Attributes:
      store: whose queue it is, and where results are.
      placed: id of a document -> id of its request in the queue.
      traces: id of a document -> traceparent of the order, which all that is done for it is a part of.
    """

    def __init__(self, store: Tiers, spans: Spans = NO_SPANS) -> None:
        self.store, self._spans = store, spans
        self.placed: dict[str, str] = {}
        self.traces: dict[str, str] = {}

    def arrived(self, document: Document, scenes: Sequence[Scene]) -> bool:
        """Whether a document was compiled, validated and published, for the first slot that is for it.

        The first question orders it. Where no slot is for it, or the store is lost, nothing arrives by asking: the
        first is True, since there is nothing to wait for, the second False.

        Raises:
          ConfigError: it was refused, or what was published cannot be had.
        """
        id = document_id(document)
        if id not in self.placed and not self._order(document, scenes):
            return True
        found = self.store.queue.get(self.placed[id])
        if isinstance(found, Failure):
            return False
        if found.status.value in ("failed", "archived"):
            del self.placed[id]  # whoever asks once more orders it anew
            raise ConfigError(f"{found.status.value}: {found.reason}")
        if not found.artefact:
            return False
        from esper.tezzeret.stages.fetching import fetch  # nothing else needs what it imports

        with self._spans.span("blueprint.load", self.traces.get(id, ""), artefact=found.artefact):
            ready = fetch(self.store, found.artefact)
        if isinstance(ready, Failure):
            raise ConfigError(f"{ready.reason}: {ready.detail}")
        return True

    def _order(self, document: Document, scenes: Sequence[Scene]) -> bool:
        """Ask a worker for a document, at once; False where no slot is for it."""
        for scene in scenes:
            engine, suits = scene.engine, blueprint_from(document).suits
            places = [(slot.reads, slot.acts, slot.is_bypass) for slot in engine.structure.slots]
            pairs = [place[:2] for place in places if suits(*place)]
            if pairs:
                facts = {"dtype": engine.config.precision.value, "backend": engine.backend.name}
                self._enqueue(document, {"site": words_of(*pairs[0]), **facts})
                return True
        return False

    def _enqueue(self, document: Document, facts: dict[str, str]) -> None:
        id = document_id(document)
        with self._spans.span("blueprint.order", name=document.name, id=id):
            self.traces[id] = self._spans.traceparent()
            self.placed[id] = self.store.queue.enqueue(canonical(document), traceparent=self.traces[id], **facts)

    def taken(self, id: str) -> None:
        """Note that the run grows with a document."""
        if id in self.placed:
            with suppress(OSError):  # a mark for people, which a lost database does without
                self.store.queue.deploy(self.placed[id])


@contextmanager
def ordering(wanted: bool, spans: Spans = NO_SPANS) -> Iterator[CompileOrders | None]:
    """A context with the orders of a run, in the store that the environment names; with none unless they are wanted.

    Raises:
      SettingsError: the store cannot be opened.
    """
    if not wanted:
        yield None
        return
    try:
        store = open_store()
    except StoreError as error:
        raise SettingsError(f"--compile-requests: {error}") from None
    with store:
        yield CompileOrders(store, spans)
