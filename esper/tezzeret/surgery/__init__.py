"""Surgery: a host's layers change while it trains; nothing is written to, and nothing is raised.

```
anatomy_of(host), learned_of(host, learners)   in: a host as one graph, its networks as named numbers
surgery(body, learned, op, samples, ...)       -> (body', learned', report)
host_of(body), learners(...)                   out: a host again, on every backend that takes it
```

An operation gives all networks of ``learned`` the new structure; ``part`` takes some out first, and the others keep
their bits. Between two steps of a run ``esper.runtime.operate`` does all of this to an engine and its state, and
removes fossils; ``esper.tolaria.triggers`` decides when.

| operation | does | outputs stay |
|---|---|---|
| ``InsertLayer(name, after)`` | a new layer that passes on what it sees, with a batch norm where that has one | yes |
| ``RemoveLayer(name)`` | it goes, with norm and activation; where channels differ a 1x1 projection bridges them | no |
| ``ModifyLayer(name, width=, start=)`` | more or fewer units, through whatever lies behind | more: yes |
| ``ModifyLayer(name, kernel=)`` | another side of the kernel | larger: yes |
| ``AddSkip(source, target, start=)`` | a way around, through a 1x1 projection where shapes differ | with start "zero" |
| ``Rewire(name, source)`` | it reads what another layer gives | no |

Where a norm goes over the units (layer norm, group norm), outputs move even if they become more; the report says by how
much. A network is at its old outputs again by keeping the old value.
New units start as ``STARTS`` says: "zero", "net2net" or "gradmax". Old parameters keep their moments.

| file | what |
|---|---|
| ``anatomy``, ``forward`` | the value that is operated on; what it computes |
| ``convert`` | from a host, and to one |
| ``layers`` | layers by name |
| ``orders``, ``operations`` | what can be asked for; what it does |
| ``units``, ``relations``, ``takes``, ``resize`` | which numbers belong to the units of a layer |
| ``sizes``, ``starts``, ``gradmax`` | widths and kernels; how new units begin |
| ``spelling``, ``places`` | operations as words; where each can be done |
| ``edit``, ``projection`` | writing into a copy of a graph |
| ``rules``, ``checks``, ``measure``, ``reports``, ``surgeon`` | constraints, checks, effects, log; all in order |
"""

from esper.tezzeret.surgery.anatomy import Anatomy, Impossible, Learned, part
from esper.tezzeret.surgery.convert import anatomy_of, host_of, learned_of, learners
from esper.tezzeret.surgery.layers import layers_of
from esper.tezzeret.surgery.orders import AddSkip, InsertLayer, ModifyLayer, Operation, RemoveLayer, Rewire, Samples
from esper.tezzeret.surgery.reports import Log, Report
from esper.tezzeret.surgery.rules import SurgeryRules
from esper.tezzeret.surgery.starts import STARTS
from esper.tezzeret.surgery.surgeon import Operated, surgery

__all__ = [
    "STARTS",
    "AddSkip",
    "Anatomy",
    "Impossible",
    "InsertLayer",
    "Learned",
    "Log",
    "ModifyLayer",
    "Operated",
    "Operation",
    "RemoveLayer",
    "Report",
    "Rewire",
    "Samples",
    "SurgeryRules",
    "anatomy_of",
    "host_of",
    "layers_of",
    "learned_of",
    "learners",
    "part",
    "surgery",
]
