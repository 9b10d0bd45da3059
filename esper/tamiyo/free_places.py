"""Free places of a policy's interface: numbers that no blueprint has yet, so that one may get them later.

A policy knows actions and columns by number; what they mean is said by name. An interface with free places has the
actions and columns of blueprints that do not exist: no task has them, so they are never legal and always 0. To fill a
place is to give it a name. No number changes by that, and with it no weight and no moment of an optimizer.
"""

from esper.leyline.actions import Blend, Op, build_codec
from esper.leyline.config import ConfigError
from esper.tamiyo.interface import Interface, meanings_of
from esper.tamiyo.logits import num_slots

FREE = "free "
"""How the names of free places begin; no blueprint's name holds a blank."""


def with_free_places(interface: Interface, count: int) -> Interface:
    """The same with places for further blueprints, at every slot.

    Args:
      interface: columns come first, as they are; actions keep their order, but not their numbers.
      count: places.

    Returns:
      law: of no places it is the interface itself.
    """
    if not count:
        return interface
    codec, slots = interface.codec, num_slots(interface.codec)
    names = (*codec.blueprint_names, *(f"{FREE}{number}" for number in range(1, count + 1)))
    placed = [action for action, name in meanings_of(codec) if name is not None]
    known = [{a.blueprint for a in codec.actions if a.slot == slot and a.blueprint >= 0} for slot in range(slots)]
    free = range(len(codec.blueprint_names), len(names))
    offers = tuple((*sorted(own), *free) for own in known)
    blends = tuple(sorted({Blend(action.blend) for action in placed}))
    columns = (f"slot{slot}.blueprint={names[place]}" for slot in range(slots) for place in free)
    wider = build_codec(offers, blends, names, Op.RETARGET in codec.ops).to(codec.op.device)
    return Interface((*interface.columns, *columns), wider, interface.graph)


def free_places(interface: Interface) -> tuple[int, ...]:
    """Numbers of the blueprints that are not there yet."""
    return tuple(place for place, name in enumerate(interface.codec.blueprint_names) if name.startswith(FREE))


def filled(interface: Interface, place: int, name: str) -> Interface:
    """The same with a blueprint's name at a free place. Law: every column and every action keeps its number.

    Raises:
      ConfigError: the place is not free, or the name is taken.
    """
    names = interface.codec.blueprint_names
    if place not in free_places(interface):
        raise ConfigError(f"place {place}: not free; expected one of {list(free_places(interface))}")
    if name in names:
        raise ConfigError(f"blueprint {name!r}: known already; expected another name than {', '.join(names)}")
    before, after = f".blueprint={names[place]}", f".blueprint={name}"
    columns = tuple(
        column.removesuffix(before) + after if column.endswith(before) else column for column in interface.columns
    )
    renamed = (*names[:place], name, *names[place + 1 :])
    return interface._replace(columns=columns, codec=interface.codec._replace(blueprint_names=renamed))
