"""Starting from a run's policy: fine-tuning what was learned from records, or with other rewards."""

from torchrl.modules import ActorValueOperator

from esper.runtime.policy_checkpoint import load_run_to_play, network_of, restore_policy
from esper.runtime.train_settings import TrainSettings
from esper.tamiyo.interface import Interface, to_table
from esper.utils.paths import user_path
from esper.utils.settings import SettingsError

SIZES = ("features", "lstm", "head")


def start_from(settings: TrainSettings, policy: ActorValueOperator, interface: Interface) -> None:
    """Put the parameters of the run that ``--start-from`` names into a policy; its optimizer begins anew.

    Args:
      settings: everything.
      policy: fresh.
      interface: what it sees and says.

    Raises:
      SettingsError: that run's policy is of another network, of other sizes, or sees or says something else.
      CheckpointError: it cannot be read.
    """
    loaded = load_run_to_play(user_path(settings.start_from))
    theirs, place = loaded.table["settings"], f"--start-from {settings.start_from}"
    if network_of(loaded).value != settings.policy_network:
        raise SettingsError(f"{place}: a policy of --policy-network {network_of(loaded).value}; expected the same here")
    for name in SIZES:
        if theirs.get(name) != getattr(settings, name):
            raise SettingsError(f"{place}: a policy of --{name} {theirs.get(name)}; expected the same here")
    if loaded.table["interface"] != to_table(interface):
        raise SettingsError(
            f"{place}: a policy of {theirs.get('task')}, which sees or says something else; expected one of this task"
        )
    restore_policy(policy, loaded)
