"""Settings of the training command."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from esper.leyline.config import ConfigError, Determinism, Precision
from esper.nissa.profiles import PROFILES, Profile, profile_of
from esper.nissa.progress import KINDS
from esper.runtime.build import DEVICES
from esper.runtime.scene import LEVELS, MODES, PRECISIONS, Rules, rules_of, tasks_of
from esper.runtime.sink_settings import METRICS_HOST, METRICS_PORT, SINKS, TRACE
from esper.simic.offline.config import ALGORITHMS, OfflineConfig
from esper.simic.ppo_config import RANGES, PPOConfig
from esper.simic.rewards import DEFAULT_REWARD
from esper.tamiyo.interface import PolicyNetwork
from esper.tezzeret.choose import CHOICES
from esper.utils.settings import Entry, SettingsError, setting

AUTO = 0
"""What ``auto`` stands for: environments that are still to be chosen; see ``esper.runtime.fitting``."""


@dataclass(frozen=True)
class TrainSettings:
    """Train a policy that decides when to grow."""

    task: str = setting(
        "digits",
        "preset, KIND:PATH (esper tasks lists them) or py:module:name; several, with commas between, share one policy",
    )
    room_for: str = setting("", "further tasks that the policy shall be able to play, with commas between")
    blueprints: str = setting(
        "", "further kinds of seed: files with blueprint documents or store:ID, with commas between"
    )
    spare_blueprints: int = setting(
        0, "places that the policy keeps for blueprints that come while it trains (esper blueprint add)", 0, 64
    )
    compile_requests: bool = setting(
        False, "what comes while it trains is compiled by a worker of the store (esper worker) before it is taken"
    )
    num_envs: int = setting(
        32,
        "environments per round and task; auto = as many as the memory that is there holds",
        low=2,
        high=65536,
        choices=("auto",),
    )
    rounds: int = setting(
        24,
        "PPO rounds, one episode of every environment each; more than a resumed run had extend it",
        low=1,
        high=10**9,
    )
    algorithm: str = setting(
        "ppo",
        "ppo plays; bc (behaviour cloning), iql and cql learn from --dataset, and a round is --offline updates=200",
        choices=("ppo", *ALGORITHMS),
    )
    record: bool = setting(False, "keep the episodes that are played, as esper generate does: episodes in --out")
    dataset: str = setting("", "recorded episodes that bc, iql and cql learn from: a directory of esper generate")
    offline: Mapping[str, Entry] = setting({}, "numbers of bc, iql and cql by name, such as expectile, beta and alpha")
    start_from: str = setting(
        "", "run directory or checkpoint whose policy is the first one, by whatever it was learned"
    )
    demonstrations: int = setting(
        0, "rounds of every script of the task that the policy is shown, and imitates, before its first", 0, 1000
    )
    horizon: int = setting(0, "decisions per episode; 0 = the preset's", low=0, high=100_000)
    seed: int = setting(0, "seed of policy and environments", low=0, high=2**31)
    engine: Mapping[str, Entry] = setting({}, "numbers of the engine by name, such as host_lr and steps_per_epoch")
    reward: str = setting(DEFAULT_REWARD.value, f"reward: {', '.join(MODES)}, or py:module:name")
    rewards: Mapping[str, Entry] = setting({}, "numbers of the reward by name, such as rent_weight")
    observation: Mapping[str, Entry] = setting({}, "units of what the policy sees by name, such as plateau")
    lr: float = setting(3e-3, "peak learning rate", *RANGES["lr"])
    gamma: float = setting(0.995, "discount per decision", *RANGES["gamma"])
    gae_lambda: float = setting(0.95, "decay of the advantage estimate", *RANGES["gae_lambda"])
    clip: float = setting(0.2, "range of the probability ratio", *RANGES["clip"])
    epochs: int = setting(6, "passes over a round", *RANGES["epochs"])
    minibatches: int = setting(4, "parts of a pass", *RANGES["minibatches"])
    entropy_start: float = setting(0.02, "entropy bonus at the start", *RANGES["entropy_start"])
    entropy_end: float = setting(0.002, "entropy bonus at the end", *RANGES["entropy_end"])
    value_weight: float = setting(0.5, "weight of the critic's loss", *RANGES["value_weight"])
    warmup: float = setting(0.05, "share of the rounds in which the learning rate rises to its peak", *RANGES["warmup"])
    max_grad_norm: float = setting(0.5, "L2 norm to which the gradient is cut", *RANGES["max_grad_norm"])
    target_kl: float = setting(
        0.03, "an update ends after a pass whose KL exceeds 1.5 times this", *RANGES["target_kl"]
    )
    sequence_chunk: int = setting(
        0,
        "decisions after which the policy's memory is taken as given in an update, to save memory; 0 = none",
        *RANGES["sequence_chunk"],
    )
    exact_chunks: bool = setting(False, "gradients cross --sequence-chunk all the same, each of which is run twice")
    value_scale: float = setting(
        20.0, "unit of the critic: of the order of an episode's return", *RANGES["value_scale"]
    )
    policy_network: str = setting(
        PolicyNetwork.RECURRENT.value,
        "recurrent: knows slots and blueprints by name; graph: by what they are, and plays every task; mlp: by name, "
        "without memory, 64 and 32 units",
        choices=tuple(network.value for network in PolicyNetwork),
    )
    features: int = setting(64, "width of the feature layer", low=1, high=4096)
    lstm: int = setting(64, "width of the memory", low=1, high=4096)
    head: int = setting(64, "width of each head's hidden layer", low=1, high=4096)
    heuristic: Mapping[str, Entry] = setting({}, "numbers of the rule of thumb in the evaluation, such as min_epochs")
    backend: str = setting("auto", "how networks are run", choices=CHOICES)
    device: str = setting("cpu", DEVICES)
    precision: str = setting(
        Precision.FLOAT32.value,
        "type of features and matrix products, of networks and (bf16) of the policy; weights and sums are float32",
        choices=PRECISIONS,
    )
    data_limit: float = setting(
        0.0, "MiB of datasets on the device at once, those used longest ago leave; 0 = all stay there", 0.0, 1e9
    )
    deterministic: str = setting(
        Determinism.ORDINARY.value, "strict: an environment's bits depend on itself alone", choices=LEVELS
    )
    out: str = setting("", "run directory; empty = runs/<task>, or the one that --resume names")
    resume: str = setting(
        "", "go on, with the run's own settings: a run directory or checkpoint; auto = --out if it holds a run"
    )
    eval_envs: int = setting(
        64, "held-out environments of the evaluation at the end; 0 = none, else >= 6", low=0, high=65536
    )
    save_every: float = setting(
        0.0, "least seconds between checkpoints; 0 = as many as 2 % of the time allow", low=0.0, high=1e9
    )
    keep: int = setting(3, "newest checkpoints that are kept", low=2, high=10**6)
    progress: str = setting("auto", "auto = a bar on a terminal, lines elsewhere", choices=KINDS)
    watch: bool = setting(False, "serve a page that shows the run as it goes; esper watch RUN does so from outside")
    watch_port: int = setting(8766, "port of that page, on 127.0.0.1; 0 = any that is free", low=0, high=65535)
    watch_envs: int = setting(
        2, "environments of every task whose decisions watch.jsonl and seeds.jsonl tell; 0 = none", low=0, high=65536
    )
    tensorboard: bool = setting(False, "also write TensorBoard events")
    threads: int = setting(0, "threads of a process; 0 = torch's choice, under torchrun cores / ranks", 0, 1024)
    metrics_port: int = setting(-1, METRICS_PORT, -1, 65535)
    metrics_host: str = setting("127.0.0.1", METRICS_HOST)
    trace: str = setting("", TRACE)
    sinks: str = setting("", SINKS)
    telemetry: str = setting(
        "off", "what is measured of the environments: esper telemetry lists it", choices=tuple(PROFILES)
    )
    measure: Mapping[str, Entry] = setting({}, "numbers of --telemetry by name, such as gradients and samples")
    dry_run: bool = setting(False, "check and build everything, say what would run, and write nothing")

    @property
    def profile(self) -> Profile:
        """What is measured.

        Raises:
          SettingsError: an unknown number, or a value that is not allowed.
        """
        return profile_of(self.telemetry, self.measure)

    def ppo(self) -> PPOConfig:
        """The learner's numbers."""
        shared = {entry.name for entry in fields(PPOConfig)} & {entry.name for entry in fields(self)}
        return PPOConfig(**{name: getattr(self, name) for name in shared})

    def offline_config(self) -> OfflineConfig:
        """The offline learner's numbers.

        Raises:
          SettingsError: an unknown name, or a number that is not allowed.
        """
        known = [entry.name for entry in fields(OfflineConfig)]
        for name in self.offline:
            if name not in known:
                raise SettingsError(f"--offline: {name}: unknown; known are {', '.join(known)}")
        given = dict[str, Any](self.offline)
        try:
            return OfflineConfig(**({"value_scale": self.value_scale} | given))
        except ConfigError as error:
            raise SettingsError(f"--offline: {error}") from None

    def rules(self) -> list[Rules]:
        """What is played, task by task."""
        return [replace(rules_of(asdict(self)), task=task) for task in tasks_of(self.task)]
