"""How long operators take: units less the savings at inner cuts (see `profile.timing`), on all the CPU there is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property

import msgspec
import numpy as np

from lamella.plan.pricing.quantised import Quantised
from lamella.profile.document import Profile, Variant
from lamella.runtime.function import Layout

PACKING: Mapping[Layout, Layout] = {"plain": "prepacked", "prepacked": "plain"}
"""Layouts that are the same where prepacking does nothing."""
MIXED: Collection[Layout] = ("blocked", "int8")
"""Layouts that are the plain one in some units."""
INERT_MB = 0.5
"""Private copies that are no larger are none."""


class Times:
    """Of the units of a profile at a batch."""

    def __init__(self, profile: Profile, batch: int, quantised: Quantised, *, paused: bool) -> None:
        """What was measured, units that run on 8-bit integers where a slice does, and whether requests are `paused`."""
        self.profile, self.batch, self.quantised, self.paused = profile, batch, quantised, paused
        self._more_cpu: dict[int, float] = {}

    def knows(self, variant: Variant) -> bool:
        """Whether the profile has it."""
        return variant in self._prefix

    def unit_ms(self, variant: Variant) -> tuple[np.ndarray, np.ndarray]:
        """Of a variant that it knows the times of units, and what not cutting between two of them saves, ms."""
        times, saved = self._prefix[variant]
        return np.diff(times), np.diff(saved)

    def compute_ms(self, first: int, last: int, *, layout: Layout, threads: int) -> float:
        """Unthrottled time of the slice's operators, ms."""
        variant = Variant(self.batch, layout, threads)
        if variant not in self._prefix:  # larger batches are measured on one thread: scale as batch 1 does
            one = self._sum(first, last, Variant(self.batch, layout, 1))
            return (
                one
                * self._sum(first, last, Variant(1, layout, threads))
                / self._sum(first, last, Variant(1, layout, 1))
            )
        return self._sum(first, last, variant)

    def compute_all_ms(self, first: int, layout: Layout, threads: int) -> np.ndarray:
        """`compute_ms` of every slice that begins with a unit, by its end."""

        def sums(variant: Variant) -> np.ndarray:
            times, saved = self._prefix[variant]
            found: np.ndarray = np.maximum(0.001, times[first + 1 :] - times[first] - (saved[first:] - saved[first]))
            return found

        variant = Variant(self.batch, layout, threads)
        if variant in self._prefix:
            return sums(variant)
        one, many = (sums(Variant(1, layout, t)) for t in (1, threads))
        scaled: np.ndarray = sums(Variant(self.batch, layout, 1)) * many / one
        return scaled

    def more_cpu(self, threads: int) -> float:
        """CPU time of the model on so many threads over that on one: they wait for memory, and for each other.

        A figure of the whole model, since a quota is spent by all operators of a run. 1 where it was not measured.
        """
        if threads not in self._more_cpu:
            one, many = (
                [t for unit in self.profile.units for t in unit.times if t.variant == Variant(1, "plain", n)]
                for n in (1, threads)
            )
            known = threads > 1 and all(t.cpu_ms is not None for t in many)
            more = sum(t.cpu_ms or 0.0 for t in many) / sum(t.median_ms for t in one) if known else 1.0
            self._more_cpu[threads] = max(1.0, more)
        return self._more_cpu[threads]

    def _sum(self, first: int, last: int, variant: Variant) -> float:
        times, saved = self._prefix[variant]
        return max(0.001, float(times[last] - times[first] - (saved[last - 1] - saved[first])))

    @cached_property
    def _inert(self) -> list[bool]:
        """Units on which prepacking does nothing: no private copy appears."""
        return [
            abs(unit.memory_in("prepacked").private_mb - unit.memory_in("plain").private_mb) < INERT_MB
            for unit in self.profile.units
        ]

    @cached_property
    def _prefix(self) -> dict[Variant, tuple[np.ndarray, np.ndarray]]:
        """Per variant the prefix sums of unit times and of savings.

        Where prepacking does nothing its two measurements are of the same thing: their mean is used for both, or the
        planner would pick the luckier one, slice after slice. Units that another layout shares with the plain one have
        that mean, too. A saving below zero is noise.
        """
        raw = {
            v: (
                np.array([u.times[k].behind(pause=self.paused)[0] for u in self.profile.units]),
                np.array([c.savings[k].ms for c in self.profile.cuts]),
            )
            for k, v in enumerate(self.profile.variants)
        }
        same_units = np.array(self._inert)
        same_cuts = same_units[:-1] & same_units[1:]
        table = dict(raw)
        for variant, (times, savings) in raw.items():
            other = raw.get(msgspec.structs.replace(variant, layout=PACKING.get(variant.layout, variant.layout)))
            if other:
                times = np.where(same_units, (times + other[0]) / 2, times)
                savings = np.where(same_cuts, (savings + other[1]) / 2, savings)
            table[variant] = times, savings
        for k, variant in enumerate(self.profile.variants):
            if variant.layout in MIXED:
                plain = table[msgspec.structs.replace(variant, layout="plain")]
                table[variant] = self._mixed(k, table[variant], plain)
        return {
            variant: (np.concatenate([[0.0], np.cumsum(times)]), np.cumsum([0.0, *np.maximum(savings, 0.0)]))
            for variant, (times, savings) in table.items()
        }

    def _mixed(
        self, k: int, own: tuple[np.ndarray, np.ndarray], plain: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Times and savings of the variant `k`, whose layout is the plain one in some units."""
        other = np.array([not unit.times[k].shared for unit in self.profile.units], bool)
        integers = self.profile.variants[k].layout == "int8"
        chosen = other & np.array(self.quantised.units, bool) if integers else other
        times = np.where(chosen, own[0], plain[0])
        shared = np.array([cut.savings[k].shared for cut in self.profile.cuts], bool)
        savings = np.where(shared, plain[1], own[1])
        refused = other & ~chosen
        beside = refused[:-1] | refused[1:]  # measured with a neighbour that is plain now
        return times, np.where(beside, np.minimum(savings, plain[1]), savings)
