"""Every way the fraud service says no: `fraud.v1.ErrorReason`, one function each."""

from __future__ import annotations

from services.refusal import Kind, Refusal


def assessment_not_found(payment: str) -> Refusal:
    message = f"No assessment of {payment} is kept: it was never assessed, or too long ago."
    return Refusal(Kind.NOT_FOUND, "ASSESSMENT_NOT_FOUND", message, payment=payment)


def rule_not_found(rule: str) -> Refusal:
    return Refusal(Kind.NOT_FOUND, "RULE_NOT_FOUND", f"There is no rule {rule}.", rule=rule)


def rule_invalid(problem: str, line: int, column: int) -> Refusal:
    where = f"Line {line}, column {column}: " if line else ""
    return Refusal(
        Kind.INVALID,
        "RULE_INVALID",
        f"{where}{problem}. Correct it; ListRules says what a rule may name.",
        line=str(line),
        column=str(column),
        problem=problem,
    )


def rule_too_costly(microseconds: float, limit: float) -> Refusal:
    message = (
        f"It takes {microseconds:.0f} µs a payment; a rule may take {limit:.0f}. Make it simpler."
    )
    return Refusal(
        Kind.INVALID,
        "RULE_TOO_COSTLY",
        message,
        microseconds=f"{microseconds:.0f}",
        limit=f"{limit:.0f}",
    )


def rule_changed(rule: str, version: int) -> Refusal:
    message = f"Rule {rule} is at version {version} by now. Read it again, then change that."
    return Refusal(Kind.PRECONDITION, "RULE_CHANGED", message, rule=rule, version=str(version))


def too_many_rules(limit: int) -> Refusal:
    message = f"{limit} rules are active, as many as may be. Switch one off first."
    return Refusal(Kind.PRECONDITION, "TOO_MANY_RULES", message, limit=str(limit))


def model_drafts_unset() -> Refusal:
    setting = "TALLYSTICK_MODEL_DRAFTS_DIR"
    message = f"This deployment keeps no draft models. Set {setting} to the folder they are in."
    return Refusal(Kind.PRECONDITION, "MODEL_DRAFTS_UNSET", message, setting=setting)


def model_not_found(model: str) -> Refusal:
    message = f"There is no draft model {model}. Put its folder beside the other drafts."
    return Refusal(Kind.NOT_FOUND, "MODEL_NOT_FOUND", message, model=model)


def model_unusable(model: str, problem: str) -> Refusal:
    why = problem.rstrip(".")
    message = f"Draft model {model} cannot be used: {why}. Mend its folder, or name another."
    return Refusal(Kind.PRECONDITION, "MODEL_UNUSABLE", message, model=model, problem=problem)
