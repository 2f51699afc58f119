"""What one rater sees: which items, in which order, and on which side each option stands.

Everything is random and depends on the seed of the study and the number of the rater only, given
how often each item was assigned before. It is balanced: items that few raters have come first; of
each comparison a rater gets equally many, up to one; and each option stands in each place equally
often, up to one. This module refuses to know answers and where assignments are kept.
"""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from recast.study.design import Design

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shown:
    """An item as a rater sees it."""

    item: int
    """Index in the design."""
    options: tuple[str, ...]
    """The options in the order in which they stand."""


def assign(design: Design, counts: Mapping[int, int], rater: int) -> list[Shown]:
    """The items of the rater with a number, in order. `counts` says how many raters have an item.

    Attention checks stand at a random place in each of equally long parts of the sequence.
    """
    rng = random.Random(f"{design.seed} {rater}")
    judged = _chosen(design, counts, rng)
    checks = rng.sample(design.checks, min(design.checks_per_rater, len(design.checks)))
    sequence = _placed(design, judged, rng)
    rng.shuffle(sequence)
    return _interleaved(sequence, _placed(design, checks, rng), rng)


def _chosen(design: Design, counts: Mapping[int, int], rng: random.Random) -> list[int]:
    """The items to judge: in turn from each group of systems the item that was assigned least."""
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index in design.judged:
        groups[tuple(design.items[index].options)].append(index)
    queues = list(groups.values())
    rng.shuffle(queues)
    for queue in queues:
        rng.shuffle(queue)
        queue.sort(key=lambda index: counts.get(index, 0))
    wanted = min(design.items_per_rater, len(design.judged))
    chosen: list[int] = []
    turn = 0
    while len(chosen) < wanted:
        queue = queues[turn % len(queues)]
        if queue:
            chosen.append(queue.pop(0))
        turn += 1
    return sorted(chosen, key=lambda index: tuple(design.items[index].options))


def _placed(design: Design, items: Sequence[int], rng: random.Random) -> list[Shown]:
    """The items with their options in order: a random order that moves on by one place from item
    to item, so that each option stands in each place equally often."""
    placed = []
    first: dict[int, list[int]] = {}
    for number, index in enumerate(items):
        options = tuple(design.items[index].options)
        order = first.setdefault(len(options), rng.sample(range(len(options)), len(options)))
        turned = [order[(place + number) % len(order)] for place in range(len(order))]
        placed.append(Shown(index, tuple(options[place] for place in turned)))
    return placed


def _interleaved(items: Sequence[T], others: Sequence[T], rng: random.Random) -> list[T]:
    """The items, with one of `others` at a random place in each of equally long parts."""
    if not others:
        return list(items)
    result: list[T] = []
    bounds = [index * len(items) // len(others) for index in range(len(others) + 1)]
    for start, end, other in zip(bounds, bounds[1:], others, strict=False):
        part = list(items[start:end])
        part.insert(rng.randint(0, len(part)), other)
        result += part
    return result
