"""``esper generate``: episodes of a mix of policies as a dataset, on several processes.

Episode i draws from (seed, i), whoever plays it beside which others, so a command that was killed goes on to the same
bits: what the manifest names is there, and the rest is played again.
"""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TextIO

import torch

from esper.leyline.config import Determinism
from esper.nissa.progress import KINDS, Progress, make_progress
from esper.runtime.generate_worker import WorkerTerms, player
from esper.runtime.interrupt import Stopped, Watch, watched
from esper.runtime.mix import Player, Share, players_of, shares_of
from esper.runtime.play_episodes import columns_of, facts_of, terms_of
from esper.runtime.policies import NAMED
from esper.runtime.run_facts import versions
from esper.runtime.scene import LEVELS, RUNS, Rules, Scene, SceneSettings, build_scene
from esper.runtime.worker_pool import Answer, Job, JobDone, ProcessWorker, WorkerError, WorkerPool
from esper.simic.episodes.columns import EpisodeColumn, to_table
from esper.simic.episodes.shards import entry_of, expect_room
from esper.simic.episodes.writer import EpisodesWriter, write_episodes
from esper.tezzeret.choose import CHOICES
from esper.utils.documents import json_ready
from esper.utils.paths import user_path
from esper.utils.settings import SettingsError, setting
from esper.utils.terminal import output

WORKER = "esper.runtime.generate_worker"

LOOK = 0.2
"""Seconds between looks at whether the command was asked to stop."""

DRAWLESS = ("wait", "random")
"""Of ``NAMED``, those that no number of ``--heuristic`` or ``--bandit`` changes."""


@dataclass(frozen=True)
class GenerateSettings(SceneSettings):
    """Record episodes of a mix of policies into a dataset."""

    out: str = setting("", "directory of the dataset; made if it is not there, and gone on with if it is")
    policies: str = setting(
        "wait:0.25,random:0.25,heuristic:0.5",
        f"who plays which share: NAME:SHARE with commas between; {', '.join(NAMED)}, script:BLUEPRINT [in SLOTS] "
        "[from EPOCH] [by BLEND], py:module:name, or a run directory",
    )
    episodes: int = setting(1000, "episodes of this mix in the dataset when the command ends", low=1, high=10**9)
    explore: float = setting(0.0, "share of the decisions that are drawn as random draws them", low=0.0, high=1.0)
    num_envs: int = setting(32, "episodes that a process plays side by side, and of a shard", low=1, high=65536)
    min: int = setting(1, "processes at least", low=1, high=1024)
    max: int = setting(1, "processes at most, of one thread each; 1: this one", low=1, high=1024)
    seed: int = setting(2, "of the environments; even, as odd ones are for evaluations", low=0, high=2**40)
    backend: str = setting("auto", "how networks are run", choices=CHOICES)
    deterministic: str = setting(
        Determinism.STRICT.value,
        "strict: an episode's bits depend on itself alone; auto = as the run",
        choices=(RUNS, *LEVELS),
    )
    progress: str = setting("auto", "how progress is shown", choices=KINDS)


class Generating(NamedTuple):
    """What is to be played, and where it goes."""

    writer: EpisodesWriter
    terms: WorkerTerms
    place: int  # of the part in the manifest
    part: dict[str, Any]
    blocks: list[tuple[int, int]]


def generate(settings: GenerateSettings, out: TextIO | None = None) -> dict[str, int]:
    """Play what is missing of a dataset.

    Args:
      settings: everything.
      out: where progress and the shares go; None = standard output.

    Returns:
      how many episodes of the dataset each policy played.

    Raises:
      SettingsError, ConfigError, CheckpointError: a setting is not allowed, or a policy cannot be had.
      EpisodesError: the directory holds something else; the difference is named.
      LockError: another process writes there.
      OSError: it cannot be written, or there is no room for it all.
      WorkerError: workers died.
      Stopped: asked to stop by a signal; what is sealed stays.
    """
    _check(settings)
    out, rules = output(out), settings.rules(settings.loaded())
    shares = shares_of(settings.policies)
    small = build_scene(rules, 1, "eager", settings.device)
    _expect_shared(small)
    players = players_of(small, shares, settings.checkpoint, settings.greedy)
    terms = terms_of(small)
    columns, folder = columns_of(small, len(terms)), user_path(settings.out)
    with watched() as watch, write_episodes(folder, facts_of(small, terms), columns) as writer:
        work = _work(settings, rules, writer, (shares, players))
        missing = sum(count for _, count in work.blocks)
        expect_room(folder, missing * _episode_bytes(columns, small.engine.config.horizon))
        progress = make_progress(settings.progress, "episode", out)
        try:
            _play(settings, work, watch, progress)
        except Stopped as stopped:
            out.write(f"{stopped}: stopped with {writer.manifest.episodes} episodes; the same command goes on\n")
            raise
        finally:
            progress.close()
        manifest = writer.manifest
    out.write(f"{manifest.episodes:,} episodes of {manifest.steps:,} decisions in {folder}, {missing:,} of them new\n")
    counts = manifest.by_policy
    width = max(map(len, counts))
    out.writelines(
        f"  {name:<{width}}  {count:>9,}  {100 * count / manifest.episodes:5.1f} %\n" for name, count in counts.items()
    )
    return counts


def _check(settings: GenerateSettings) -> None:
    if not settings.out:
        raise SettingsError("--out: expected a directory for the dataset")
    if settings.seed % 2:
        raise SettingsError(f"--seed = {settings.seed}: expected an even number; odd ones are for evaluations")
    if settings.min > settings.max:
        raise SettingsError(f"--min = {settings.min}: expected at most --max, {settings.max}")


def _expect_shared(scene: Scene) -> None:
    """Raise unless every number holds for all environments alike: an episode's place in a batch means nothing."""
    for flag, numbers_of in (("--engine", scene.engine.hypers), ("--rewards", scene.params)):
        for name, number in numbers_of.items():
            if number.dim():
                raise SettingsError(f"{flag}: {name}: a value for every environment; expected one for all")


def _episode_bytes(columns: Sequence[EpisodeColumn], horizon: int) -> int:
    return sum(column.row_bytes * (horizon if column.per == "step" else 1) for column in columns)


def _work(
    settings: GenerateSettings, rules: Rules, writer: EpisodesWriter, mix: tuple[Sequence[Share], Sequence[Player]]
) -> Generating:
    """What is missing of the part that the command asks for."""
    shares, players = mix
    numbers = {name: dict(getattr(rules, name)) for name in ("heuristic", "bandit") if getattr(rules, name)}
    own = [numbers if each.name in NAMED and each.name not in DRAWLESS else {} for each in players]
    indices = [
        writer.policy(each.name, kind=each.kind, digest=each.digest, numbers=json_ready(more))
        for each, more in zip(players, own, strict=True)
    ]
    options = {
        "seed": settings.seed,
        "explore": settings.explore,
        "batch": settings.num_envs,
        "checkpoint": settings.checkpoint,
        "greedy": settings.greedy,
        "backend": settings.backend,
        "device": settings.device,
    }
    table = [[share.name, share.share, index] for share, index in zip(shares, indices, strict=True)]
    identity = json_ready(options | {"rules": asdict(rules), "mix": table})
    place, part = _part(settings, writer, identity)
    terms = WorkerTerms(
        json_ready(asdict(rules)), [(each.name, each.share) for each in shares], indices, [p.digest for p in players],
        to_table(writer.manifest.columns), options,
    )  # fmt: skip
    there = [(shard.first, shard.episodes) for shard in writer.manifest.shards]
    return Generating(writer, terms, place, part, blocks_of(part["first"], settings.episodes, settings.num_envs, there))


def _part(
    settings: GenerateSettings, writer: EpisodesWriter, identity: Mapping[str, Any]
) -> tuple[int, dict[str, Any]]:
    """The part of the dataset that such settings make, as it is there or a new one behind all others."""
    parts = writer.manifest.parts
    first = max((part["first"] + part["episodes"] for part in parts), default=0)
    for place, part in enumerate(parts):
        if part["settings"] == identity:
            if settings.episodes > part["episodes"] and place < len(parts) - 1:
                raise SettingsError(
                    f"--episodes = {settings.episodes}: {writer.folder} has {part['episodes']} of this mix and others "
                    "behind them; expected no more, or another seed"
                )
            return place, {**part, "episodes": max(part["episodes"], settings.episodes)}
    new = {"kind": "generate", "first": first, "episodes": settings.episodes, "settings": dict(identity)}
    return len(parts), {**new, "versions": versions()}


def _play(settings: GenerateSettings, work: Generating, watch: Watch, progress: Progress) -> None:
    """Play all blocks, and take in each as it is done."""
    jobs: list[dict[str, Any]] = [
        {"first": first, "count": count, "place": str(work.writer.incoming(first, count).absolute())}
        for first, count in work.blocks
    ]
    total, played, start = sum(job["count"] for job in jobs), 0, time.perf_counter()
    answers = _here(work.terms, jobs, watch) if settings.max == 1 else _apart(settings, work.terms, jobs, watch)
    with closing(answers):
        for job, answer in answers:
            _take_in(work, job, answer)
            played += job["count"]
            left = (time.perf_counter() - start) / played * (total - played)
            progress.show(played, total, f"{work.writer.manifest.episodes} are there", left)


def _take_in(work: Generating, job: Job, answer: Answer) -> None:
    if "error" in answer:
        if "errno" in answer:
            raise OSError(answer["errno"], answer["error"], job["place"])
        raise SettingsError(answer["error"])
    work.writer.part(work.place, {**work.part, "machine": answer["machine"]})
    work.writer.take_in(user_path(job["place"]), entry_of(answer["entry"]))


def _here(terms: WorkerTerms, jobs: Sequence[Job], watch: Watch) -> Generator[tuple[Job, Answer], None, None]:
    """Do jobs in this process, by one thread."""
    with _one_thread():
        work: Callable[[Job], Answer] | None = None
        for job in jobs:
            watch.check()
            work = player(terms) if work is None else work
            yield job, work(job)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _apart(
    settings: GenerateSettings, terms: WorkerTerms, jobs: Sequence[Job], watch: Watch
) -> Generator[tuple[Job, Answer], None, None]:
    """Do jobs in processes of their own."""
    pool = WorkerPool(lambda: ProcessWorker(WORKER, terms._asdict()), settings.min, settings.max)
    try:
        for job in jobs:
            pool.put(job)
        for _ in jobs:
            done: JobDone | None = None
            while done is None:
                watch.check()
                done = pool.done(LOOK)
            if done.answer is None:
                raise WorkerError(f"episodes {done.job['first']} and on: {done.error}")
            yield done.job, done.answer
    finally:
        pool.close()


def blocks_of(first: int, count: int, size: int, there: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """What is missing of a range of numbers, in blocks of at most ``size`` that begin at its multiples after ``first``.

    Args:
      first, count: the range.
      size: of a block.
      there: ranges that are there, as (first, count).

    Returns:
      (first, count) of each block, in order.
    """
    found, held = list[tuple[int, int]](), sorted(there)
    position, end = first, first + count
    while position < end:
        covering = next((at + n for at, n in held if at <= position < at + n), None)
        if covering is not None:
            position = covering
            continue
        stop = min(end, first + ((position - first) // size + 1) * size, *(at for at, _ in held if at > position), end)
        found.append((position, stop - position))
        position = stop
    return found
