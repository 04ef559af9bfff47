"""Attacks one batch on one model: runs the attack of every cell, checks its result, and scores it.

All cells share one clean forward, and all budgets one backward per loss; one forward scores each result. Attacks are
not trusted: every result is measured in float64, violations are recorded as flags, and the image is projected onto
bounds and budget before it is scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import product
from typing import TypeGuard

import torch
from torch import Tensor, nn

from advseg_bench import geometry, metrics
from advseg_bench.attacks.base import image_generators
from advseg_bench.attacks.gradient import is_shared
from advseg_bench.attacks.stepping import SteppedAttack, is_stepped
from advseg_bench.batches import Batch, copy_batch
from advseg_bench.checks.results import Checked, check_form, inspect, traits_of
from advseg_bench.errors import TaintedError, one_line
from advseg_bench.instruments.counter import Counter
from advseg_bench.instruments.guard import ModelGuard
from advseg_bench.instruments.process_state import Changes, make_flags, watched
from advseg_bench.instruments.profiling import timed
from advseg_bench.models.prepare import Prepared
from advseg_bench.protocols import Attack, NeedsModel
from advseg_bench.registry.origin import is_foreign
from advseg_bench.running.courses import Course, Courses, Given
from advseg_bench.running.interrupts import is_ctrl_c
from advseg_bench.running.packing import Fill
from advseg_bench.running.rows import Passes, make_rows
from advseg_bench.running.share import SharedGradients
from advseg_bench.running.watch import Announce, Watch, copy_result, keep_silent
from advseg_bench.running.work import Failure, Row
from advseg_bench.suite.cells import CLEAN, Cell
from advseg_bench.types import Budget, Traits


class Scene:
    """One batch and one model, with everything that the cells share.

    Args:
        model: The model that computes scores; frozen, in eval mode, on the batch's device.
        guard: Guard of the model that is attacked, which may be a prepared copy.
        batch: Images and labels, padded to the compute batch.
        dataset: Name of the data set.
        n: Number of images without padding.
        seed: Seed of the suite.
        pack: Whether to run stepped attacks together, image by image; not for a model that is random.
        fill: Counts the rows of forward passes of stepped attacks.
        announce: Called before each attack, or group of attacks that run together.
    """

    def __init__(
        self,
        model: nn.Module,
        guard: ModelGuard,
        batch: Batch,
        *,
        dataset: str,
        n: int,
        seed: int,
        pack: bool = True,
        fill: Fill | None = None,
        announce: Announce = keep_silent,
    ) -> None:
        self.announce = announce
        self.model, self.batch, self.dataset, self.n, self.seed = model, batch, dataset, n, seed
        self.pack, self.fill = pack, Fill() if fill is None else fill
        self.guard, self.attacked = guard, guard.model
        self.exact = not isinstance(self.attacked, Prepared) or self.attacked.exact
        self.guard.sample = batch.x[:1]
        self.thorough, self.changed = True, False
        self.watch = Watch(model, self.attacked)

    def attack_and_score(self, cells: Sequence[Cell], attacks: Mapping[str, Attack]) -> tuple[list[Row], list[Failure]]:
        """Run all cells; a cell that raises becomes a failure and does not affect the others.

        The model's values and the state of the process are compared once, at the end, and the state of the process also
        after each attack of others. If a value changed without changing its write counter, or a state without being
        attributed, all cells are run again with a comparison after each, so that the change is attributed to its cell
        and affects no other.

        Args:
            cells: Cells to run, with or without the clean one.
            attacks: Id of each attacked cell -> its attack.

        Returns:
            Rows of `records.ROW_SCHEMA`, and failures.

        Raises:
            TaintedError: An attack left the process in a state that cannot be restored.
        """
        self.thorough = False
        with watched() as found:
            done = self._run_cells(cells, attacks)
            self.changed |= self.guard.restore()
        if self.changed or found.names:
            self.thorough = True
            with watched():
                done = self._run_cells(cells, attacks)
        return self.watch.flag(done[0]), done[1]

    def _run_cells(self, cells: Sequence[Cell], attacks: Mapping[str, Attack]) -> tuple[list[Row], list[Failure]]:
        rows: dict[str, list[Row]] = {}
        failures: list[Failure] = []
        self.announce(cells, self.batch)
        logits, shared = self.look([attacks[cell.id] for cell in cells if cell.arm != CLEAN])
        clean = metrics.predict(logits, self.batch.task)
        target = metrics.Target(clean, self.batch)
        broken = _find_non_finite(logits)
        packed = self._find_packed(cells, attacks)
        scored: dict[str, Given] = {}
        courses: dict[str, Course] = {}
        ran = False
        for cell in [c for c in cells if c.id not in packed] + [c for c in cells if c.id in packed]:
            if cell.id in packed and not ran:
                courses, ran = self._run_packed(cells, packed, scored), True
            try:
                if cell.arm == CLEAN:
                    moves = geometry.measure_moves(self.batch.x, self.batch.x)
                    flags: list[set[str]] = [set() for _ in self.batch.x]
                    passes: Passes | None = [(0, 0)] * len(flags)
                    prediction = clean
                else:
                    if cell.id in courses:
                        checked, passes, prediction = self.finish(cell, packed[cell.id], courses.pop(cell.id))
                    else:
                        self.announce([cell], self.batch)
                        checked, passes = self.perturb(cell, attacks[cell.id], shared)
                        attacked = self.forward(checked.x_adv)
                        prediction = metrics.predict(attacked, self.batch.task)
                        self._flag_misses(attacks[cell.id], attacked, logits, checked.flags)
                        _flag("non_finite_logits", _find_non_finite(attacked), checked.flags)
                        if cell.member is not None:
                            scored[cell.id] = checked.x_adv, prediction, attacked.flatten(1).isfinite().all(1)
                    moves, flags = checked.moves, checked.flags
                _flag("non_finite_logits", broken, flags)
            except TaintedError:
                raise
            except BaseException as error:
                if is_ctrl_c(error):
                    raise
                self.changed |= self.guard.restore()
                failures.append(Failure(cell.model, "attack", cell.id, one_line(error)))
                continue
            rows[cell.id] = make_rows(
                cell,
                self.batch,
                self.n,
                dataset=self.dataset,
                moves=moves,
                flags=flags,
                passes=passes,
                counts=target.count(prediction),
            )
        return [row for cell in cells for row in rows.get(cell.id, ())], failures

    def _find_packed(self, cells: Sequence[Cell], attacks: Mapping[str, Attack]) -> dict[str, SteppedAttack]:
        """The attacks to run together: those of a battery, and others unless a change of the model is to be traced."""
        found = {}
        for cell in cells:
            attack = attacks.get(cell.id)
            if self.pack and attack and _is_packed(attack) and (cell.member is not None or not self.thorough):
                found[cell.id] = attack
        return found

    @timed("attack: losses and steps")
    def _run_packed(
        self, cells: Sequence[Cell], packed: Mapping[str, SteppedAttack], scored: Mapping[str, Given]
    ) -> dict[str, Course]:
        """Run stepped attacks together."""
        running = [cell for cell in cells if cell.id in packed]
        announce = partial(self.announce, running, self.batch)
        courses = Courses(self.model, self.attacked, self.batch, self.n, self.seed, announce)
        foreign = self.watch.foreign_model or any(map(is_foreign, packed.values()))
        with watched() if self.thorough or foreign else nullcontext(Changes()) as changes:
            found = courses.run(cells, packed, scored, self.fill)
        self.changed |= bool(changes.names) or (
            bool(changes.random) and self.pack
        )  # then each is run alone, from its own seed
        marks = make_flags(self.watch.of_attack(changes.names))
        if self.guard.restore(thorough=self.thorough or changes.left_threads):
            self.changed = True
            marks.add("model_changed")
        for course, flag in product(found.values(), marks):
            course.mark(flag)
        return found

    def finish(self, cell: Cell, attack: SteppedAttack, course: Course) -> tuple[Checked, Passes | None, Tensor]:
        """Check the result of a stepped attack as `perturb` does.

        Returns:
            As `perturb`, and the predictions on the images that were scored.
        """
        if course.error is not None:
            raise course.error
        rows = [i % self.n for i in range(len(self.batch.x))]
        x_adv = check_form(torch.cat([course.x_adv[i] for i in rows]), self.batch, cell.arm.attack)
        checked = _inspect(x_adv, self.batch, Budget(cell.arm.norm, cell.eps), traits_of(attack))
        for i, flags in zip(rows, checked.flags, strict=True):
            flags |= course.flags[i]
        passes = [course.passes[i] for i in rows]
        _flag_costs(traits_of(attack), passes, checked.flags)
        return checked, passes, torch.cat([course.predictions[i] for i in rows])

    @timed("scoring: forwards")
    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the scoring model, without a graph."""
        with torch.no_grad(), self.watch.of_model(self.thorough):
            logits: Tensor = self.model(x)
        return logits

    @timed("attack: losses and steps")
    def look(self, attacks: Sequence[Attack]) -> tuple[Tensor, SharedGradients]:
        """Return clean logits, and the gradients that one-gradient attacks share; from one forward if possible."""
        ours = attacks if not self.thorough else [attack for attack in attacks if not is_foreign(attack)]
        with self.watch.of_model(self.thorough):
            shared = SharedGradients(self.attacked, self.batch, ours)
        logits = shared.logits
        return self.forward(self.batch.x) if logits is None or not self.exact else logits, shared

    @timed("attack: losses and steps")
    def perturb(self, cell: Cell, attack: Attack, shared: SharedGradients) -> tuple[Checked, Passes | None]:
        """Run one attack and check its result.

        The attack gets a copy of images and labels, so that it cannot change the ground truth or the input of others.
        One of others has its result copied, and the process restored, before anything is judged.

        Returns:
            The images within bounds and budget with the flags of each, and the forwards and backwards of the attack
            for each image, None if they are not known exactly.
        """
        budget, x, traits = Budget(cell.arm.norm, cell.eps), self.batch.x, traits_of(attack)
        lent = copy_batch(self.batch)
        generators = image_generators(self.seed, cell.seed_id, self.batch.images)
        passes: Passes | None = [(1, 1)] * len(x)  # of a one-gradient attack, as if it ran alone
        foreign = is_foreign(attack)
        seed = generators[0].initial_seed() if foreign else None
        watching = watched(seed=seed, random_too=foreign) if foreign or self.thorough else nullcontext(Changes())
        if is_shared(attack):
            with watching as changes:
                if self.thorough and foreign:  # an objective of others is watched in each cell that has it
                    shared = SharedGradients(self.attacked, self.batch, ())
                gradient = shared.of(attack)
                broken = _find_non_finite(gradient)
                x_adv: object = attack.step(lent, gradient.clone() if foreign else gradient, budget, generators)
                x_adv = copy_result(x_adv) if foreign else x_adv
        else:
            source = attack.source if isinstance(attack, NeedsModel) else None
            asked = source if isinstance(source, nn.Module) else self.attacked
            counted = Counter(asked).count(len(x), cell.max_forwards)
            with counted as tally, torch.enable_grad(), watching as changes:
                x_adv = attack(self.attacked, lent, budget=budget, generators=generators)
                x_adv = copy_result(x_adv) if foreign else x_adv
            passes, broken = tally.per_image(), tally.find_non_finite()
        found = check_form(x_adv, self.batch, cell.arm.attack)
        self.changed |= bool(changes.names) and self.watch.foreign_model  # which of both made the change?
        common = make_flags(self.watch.of_attack(changes.names))
        if self.guard.restore(thorough=self.thorough or changes.left_threads):
            self.changed = True  # perhaps by an attack before this one, which only a thorough check finds
            common.add("model_changed")
        pairs = ((lent.x, x), (lent.y, self.batch.y), (lent.valid, self.batch.valid))
        if not all(torch.equal(ours, theirs) for ours, theirs in pairs):
            common.add("input_changed")
        checked = _inspect(found, self.batch, budget, traits)
        for flags in checked.flags:
            flags |= common
        _flag("non_finite_gradient", broken, checked.flags)
        if passes is not None:
            _flag_costs(traits, passes, checked.flags)
        return checked, passes

    def _flag_misses(self, attack: Attack, attacked: Tensor, clean: Tensor, flags: list[set[str]]) -> None:
        """Flag images on which a success-gated attack did not succeed, by the logits of the scored images."""
        criterion = getattr(attack, "reached", None)
        if criterion is None:
            return
        with watched() if self.thorough or is_foreign(attack) else nullcontext(Changes()) as changes:
            reached = criterion(attacked, clean, self.batch)
        for names, success in zip(flags, [None] * len(flags) if reached is None else reached.tolist(), strict=True):
            names |= make_flags(self.watch.of_attack(changes.names)) | ({"not_reached"} if success is False else set())


@timed("check of results")
def _inspect(x_adv: Tensor, batch: Batch, budget: Budget, traits: Traits) -> Checked:
    return inspect(x_adv, batch, budget, traits)


def _is_packed(attack: Attack) -> TypeGuard[SteppedAttack]:
    """Whether an attack is no more than its queries, and has no criterion of success of its own."""
    return is_stepped(attack) and not hasattr(attack, "reached")


def _find_non_finite(values: Tensor) -> set[int]:
    """Indices of the images with NaN or infinity in their logits or gradients."""
    return set((~values.flatten(1).isfinite().all(1)).nonzero().flatten().tolist())


def _flag(name: str, images: Iterable[int], flags: list[set[str]]) -> None:
    """Set a flag of some images."""
    for i in images:
        flags[i].add(name)


def _flag_costs(stated: Traits, passes: Passes, flags: list[set[str]]) -> None:
    """Flag the images for which an attack used more passes than its traits state."""
    for names, (forwards, backwards) in zip(flags, passes, strict=True):
        pairs = ((forwards, stated.forwards), (backwards, stated.backwards))
        if any(most is not None and found > most for found, most in pairs):
            names.add("over_cost")
