"""Rules' expressions: CEL, checked against the variables that exist.

The runtime is the official C++ one: it has a type checker that says where an error is, and gives up
by itself on an expression that loops.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cel_expr_python import cel

from services.fraud.domain.leading import Test, leading_tests
from services.fraud.domain.variables import VARIABLES, Case, Value

# What one rule may take, in microseconds: a payment has 150 for everything, rules some twenty.
COST_MAX_MICROSECONDS = 40.0
_REPETITIONS = 50

_TYPES = {
    "double": cel.Type.DOUBLE,
    "int": cel.Type.INT,
    "bool": cel.Type.BOOL,
    "string": cel.Type.STRING,
}
_ENVIRONMENT = cel.NewEnv(variables={each.name: _TYPES[each.type] for each in VARIABLES.values()})
_POSITION = re.compile(r"ERROR: <input>:(\d+):(\d+): ([^\n]*)")
_WORD = re.compile(r"[A-Za-z_]\w*")


class ExpressionError(Exception):
    """An expression that cannot be used.

    Attributes:
        problem: What is wrong.
        line: Where, from 1; 0 for the whole of it.
        column: Where, in characters, from 1; 0 for the whole of it.
    """

    def __init__(self, problem: str, line: int = 0, column: int = 0) -> None:
        super().__init__(problem)
        self.problem = problem
        self.line = line
        self.column = column


class CostError(Exception):
    """An expression that takes too long.

    Attributes:
        microseconds: What it took.
    """

    def __init__(self, microseconds: float) -> None:
        super().__init__(f"{microseconds:.0f} µs")
        self.microseconds = microseconds


@dataclass(frozen=True, slots=True)
class Expression:
    """A compiled yes or no over the variables.

    Attributes:
        names: The variables it names.
        read: Reads their values of a payment.
    """

    names: frozenset[str]
    read: Callable[[Case], dict[str, Value]]
    _program: cel.Expression

    def holds(self, values: Mapping[str, Value]) -> bool | None:
        """Whether it is true; None when that cannot be computed, such as 1 / 0.

        Args:
            values: Of `names` at least.
        """
        try:
            found = self._program.eval(data=values).value()
        except RuntimeError:
            return None
        # An error comes back as a value of its own, not as an exception.
        return found if isinstance(found, bool) else None


def compile_expression(text: str) -> Expression:
    """Compile an expression.

    Raises:
        ExpressionError: it does not parse, names what does not exist, mixes types, or is no yes or no.
    """
    try:
        program = _ENVIRONMENT.compile(text)
    except RuntimeError as error:
        raise _error(str(error)) from error
    if program.return_type() != cel.Type.BOOL:
        kind = program.return_type().name().lower()
        raise ExpressionError(f"it gives a {kind}; a rule must be true or false")
    names = frozenset(_WORD.findall(text)) & VARIABLES.keys()
    return Expression(names, _reading(names), program)


def _reading(names: Iterable[str]) -> Callable[[Case], dict[str, Value]]:
    readers = [(name, VARIABLES[name].read) for name in names]
    return lambda case: {name: read(case) for name, read in readers}


class Expressions:
    """Several expressions, of which a payment makes few true.

    Args:
        texts: Each compiles.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._each = [compile_expression(text) for text in texts]
        self._led: list[tuple[int, tuple[Test, ...]]] = []
        self._others: list[int] = []
        for number, text in enumerate(texts):
            if tests := leading_tests(text):
                self._led.append((number, tests))
            else:
                self._others.append(number)
        # The line break ends a comment that an expression may end with.
        others = " || ".join(f"({texts[number]}\n)" for number in self._others)
        self._any_other = compile_expression(others or "false")

    def hold(self, case: Case) -> list[tuple[int, bool | None]]:
        """What `Expression.holds` says of each that is not false, with its number, in order."""
        asked = [number for number, tests in self._led if _all(tests, case)]
        # Those that begin with something else are asked together first: a call costs more than what it computes.
        if self._others and self._any_other.holds(self._any_other.read(case)) is not False:
            asked = sorted(asked + self._others)
        found: list[tuple[int, bool | None]] = []
        for number in asked:
            expression = self._each[number]
            holds = expression.holds(expression.read(case))
            if holds is not False:
                found.append((number, holds))
        return found


def _all(tests: Sequence[Test], case: Case) -> bool:
    for test in tests:  # noqa: SIM110 - `all` with a generator costs as much as the tests
        if not test(case):
            return False
    return True


def check_cost(
    expression: Expression,
    cases: Sequence[Case],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Try an expression on some payments.

    Raises:
        ExpressionError: it cannot be computed for one of them.
        CostError: on one of them it takes longer than COST_MAX_MICROSECONDS, in the best of several
            attempts.
    """
    for case in cases:
        values = expression.read(case)
        best = float("inf")
        for _ in range(_REPETITIONS):
            started = clock()
            found = expression.holds(values)
            best = min(best, clock() - started)
            if found is None:
                raise ExpressionError(
                    "it cannot be computed for an ordinary payment: it divides by zero, goes round too often, or "
                    "converts what cannot be converted"
                )
        if best * 1e6 > COST_MAX_MICROSECONDS:
            raise CostError(best * 1e6)


def _error(said: str) -> ExpressionError:
    found = _POSITION.search(said)
    if found is None:
        return ExpressionError(said.partition("\n")[0].removesuffix(" [INVALID_ARGUMENT]"))
    return ExpressionError(found[3].strip(), int(found[1]), int(found[2]))
