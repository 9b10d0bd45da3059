"""What plays a run's rounds: its tasks' engines, what the policy sees and says, and collectors.

Between rounds it may take a further blueprint: a run that is gone on with does so after the same rounds, and so in the
same bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from tensordict import TensorDictBase

from esper.leyline.config import ConfigError, Precision
from esper.nissa.spans import NO_SPANS, Spans
from esper.runtime.adopt import Adopted, adopt
from esper.runtime.collect import Playing, Track, make_track
from esper.runtime.interrupt import Watch
from esper.runtime.record_training import TaskEpisodes
from esper.runtime.residing import residing
from esper.runtime.run_blueprints import blueprint_from, document_id, is_for
from esper.runtime.scene import Rules, Scene, build_scene, tasks_of
from esper.runtime.train_settings import TrainSettings
from esper.simic.ppo import Learner
from esper.simic.ranks import shard_of
from esper.tamiyo.actor_critic import ActorCriticConfig
from esper.tamiyo.free_places import filled, free_places, with_free_places
from esper.tamiyo.interface import Interface, PolicyNetwork, common
from esper.tamiyo.networks import build_policies
from esper.tezzeret.blueprints import Document
from esper.tolaria.residence import Residence


def is_graph(settings: TrainSettings) -> bool:
    """Whether the policy knows seeds by what they are."""
    return settings.policy_network == PolicyNetwork.GRAPH.value


def shared_interface(settings: TrainSettings, scenes: Sequence[Scene]) -> Interface:
    """What the policy sees and says: everything of the tasks it trains on, of those it shall be able to play, and free
    places.
    """
    further = tasks_of(settings.room_for, "--room-for") if settings.room_for else []
    rooms = [build_scene(Rules(task=task), 1, "eager") for task in further]
    return with_free_places(common([scene.engine.interface for scene in (*scenes, *rooms)]), settings.spare_blueprints)


def shown_interfaces(settings: TrainSettings, scenes: Sequence[Scene], shared: Interface) -> list[Interface]:
    """Through which interface the policy plays each task."""
    return [scene.engine.interface if is_graph(settings) else shared for scene in scenes]


def sizes_of(settings: TrainSettings) -> ActorCriticConfig:
    """Sizes of the policy."""
    sizes = (settings.features, settings.lstm, settings.head, settings.value_scale)
    return ActorCriticConfig(*sizes, Precision(settings.precision))


class Adoptable(NamedTuple):
    """A further blueprint that can be taken.

    Attributes:
      document: of it.
      interface: what the policy will see and say.
      found: by task, the engine with it and the state of its environments; None where no slot is for it.
      backends: by task, what runs it.
    """

    document: Document
    interface: Interface
    found: Sequence[Adopted | None]
    backends: tuple[tuple[str, str], ...]


@dataclass
class Players:
    """What plays.

    Attributes:
      settings: of the run.
      learner: whose policy plays.
      watch: looked at before every step.
      scenes: task by task.
      interface: the policy's, where all tasks share it.
      spans: where what takes time within a step is recorded.
      residence: of the tasks' datasets, where they take turns on the device.
      tracks: task by task.
      episodes: task by task, where what they play goes; empty: it is not kept.
    """

    settings: TrainSettings
    learner: Learner
    watch: Watch
    scenes: list[Scene]
    interface: Interface
    spans: Spans = NO_SPANS
    residence: Residence | None = field(init=False)
    tracks: list[Track] = field(init=False)
    episodes: Sequence[TaskEpisodes] = ()

    def __post_init__(self) -> None:
        """Make the tracks."""
        self.residence = Residence(int(self.settings.data_limit * 2**20)) if self.settings.data_limit else None
        if self.residence is not None:
            self.scenes[:] = [scene._replace(engine=residing(scene.engine, self.residence)) for scene in self.scenes]
        shown = shown_interfaces(self.settings, self.scenes, self.interface)
        self.tracks = [self._track(place, shown[place]) for place in range(len(self.scenes))]

    def _track(self, place: int, interface: Interface) -> Track:
        shard = shard_of(self.settings.num_envs, self.learner.ranks) if self.learner.ranks.size > 1 else None
        playing = Playing(shard, self.settings.record, self.spans, self.settings.profile)
        return make_track(self.scenes[place], interface, self.learner, self.watch, place, playing)

    def keep(self, seed: int, number: int, batches: Sequence[TensorDictBase]) -> None:
        """Put a round to the datasets, if there are any; see ``TaskEpisodes.append``."""
        for track, episodes, batch in zip(self.tracks, self.episodes, batches, strict=False):
            if track.recorder is not None:
                episodes.append(seed, number, track.recorder, batch)

    def failures(self) -> int:
        """Kernels that raised so far; see ``Backend.failures``."""
        return sum(scene.engine.backend.failures() for scene in self.scenes)

    def documents(self) -> list[str]:
        """Ids of all documents in force, in order."""
        return [document_id(document) for document in self.scenes[0].rules.documents]

    def prepared(self, document: Document) -> Adoptable:
        """All that can fail of taking a further blueprint, in every task that has a slot for it; nothing changes yet.

        Raises:
          ConfigError: no slot takes it, no place is free for it, its name is taken, or a backend cannot run it.
        """
        if self.settings.record:
            raise ConfigError("the run's episodes are recorded (--record), all of the same blueprints; expected none")
        free, graph = free_places(self.interface), is_graph(self.settings)
        if not (free or graph):
            raise ConfigError(f"no place is free; --spare-blueprints was {self.settings.spare_blueprints}")
        found = [self._adopted(place, document) for place in range(len(self.scenes))]
        if not any(found):
            tasks = ", ".join(scene.rules.task for scene in self.scenes)
            raise ConfigError(f"blueprint {document.name!r}: fits no slot of {tasks}")
        pairs = zip(self.scenes, found, strict=True)
        backends = tuple((scene.rules.task, adopted.engine.backend.name) for scene, adopted in pairs if adopted)
        interface = self.interface if graph else filled(self.interface, free[0], document.name)
        return Adoptable(document, interface, found, backends)

    def take(self, ready: Adoptable) -> None:
        """Take what was prepared; in the graph policy's own way, or at a free place of the shared interface."""
        document, self.interface, found, _ = ready
        for place, (scene, adopted) in enumerate(zip(self.scenes, found, strict=True)):
            rules = replace(scene.rules, documents=(*scene.rules.documents, document))
            engine = scene.engine if adopted is None else adopted.engine
            kinds = engine.structure.blueprints
            self.scenes[place] = scene._replace(rules=rules, engine=engine, task=scene.task._replace(blueprints=kinds))
        self._play_on(found)

    def _adopted(self, place: int, document: Document) -> Adopted | None:
        """A task's engine with a document, and the state of its environments; None where no slot is for it."""
        engine = self.scenes[place].engine
        if not is_for(document, engine.structure):
            return None
        if self.residence is not None:
            self.residence.bring(engine.data)
        return adopt(engine, self.tracks[place].env.state, blueprint_from(document))

    def _play_on(self, found: Sequence[Adopted | None]) -> None:
        """Collectors for engines that are new, and the policy as it plays there, with the same weights."""
        shown = shown_interfaces(self.settings, self.scenes, self.interface)
        if is_graph(self.settings):
            device = self.scenes[0].engine.codec.op.device
            views = build_policies(PolicyNetwork.GRAPH, sizes_of(self.settings), shown, self.settings.seed)
            self.learner.show([view.to(device) for view in views])
        for place, adopted in enumerate(found):
            self.tracks[place].collector.shutdown()
            self.tracks[place] = self._track(place, shown[place])
            if adopted is not None:
                self.tracks[place].env.state = self.tracks[place].env.ended = adopted.state

    def shutdown(self) -> None:
        """End the collectors."""
        for track in self.tracks:
            track.collector.shutdown()
