"""Sinks: where a run's numbers and events go.

``record`` is the run's own record, from which it is gone on with. Everything else follows one protocol (``protocol``)
and is fed from one place (``fan_out``), each in a thread of its own behind a breaker, so that none can end, delay or
change a run; ``opening`` lists them by the words that ask for them.
"""

from esper.nissa.sinks.record import LARGEST as LARGEST
from esper.nissa.sinks.record import METRICS as METRICS
from esper.nissa.sinks.record import Metrics as Metrics
from esper.nissa.sinks.record import SinkError as SinkError
from esper.nissa.sinks.record import digest_of as digest_of
from esper.nissa.sinks.record import lines_until as lines_until
from esper.nissa.sinks.record import read_rows as read_rows
from esper.nissa.sinks.record import write_text as write_text
