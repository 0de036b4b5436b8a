"""Every way this service says no: `user.v1.ErrorReason`, one function each."""

from __future__ import annotations

from datetime import datetime, timedelta

from services.refusal import Kind, Refusal


def request_id_reused(request_id: str) -> Refusal:
    message = (
        f"request_id {request_id} came before with another body. Make a new id for a new request."
    )
    return Refusal(Kind.ALREADY_EXISTS, "REQUEST_ID_REUSED", message, requestId=request_id)


def password_too_common() -> Refusal:
    message = "This password is among the first that are tried. Choose a longer phrase of your own."
    return Refusal(Kind.INVALID, "PASSWORD_TOO_COMMON", message)


def site_required(role: str) -> Refusal:
    message = (
        f"A {role} registers without a site. Leave `site` out."
        if role == "USER"
        else f"A {role} registers with a first place of business. Fill in `site`."
    )
    return Refusal(Kind.INVALID, "SITE_REQUIRED", message, role=role)


def username_taken(username: str) -> Refusal:
    message = f"Somebody has the username {username}. Choose another."
    return Refusal(Kind.ALREADY_EXISTS, "USERNAME_TAKEN", message, username=username)


def user_not_found(name: str) -> Refusal:
    message = f"There is no account {name}, or it is not yours to see."
    return Refusal(Kind.NOT_FOUND, "USER_NOT_FOUND", message, name=name)


def user_state_wrong(state: str, needed: str) -> Refusal:
    message = f"The account is {state}; this needs one that is {needed}."
    return Refusal(Kind.PRECONDITION, "USER_STATE_WRONG", message, state=state, needed=needed)


def tier_not_applicable(role: str) -> Refusal:
    message = f"The account of an {role} pays nothing, so it has no tier. Name a payer's account."
    return Refusal(Kind.PRECONDITION, "TIER_NOT_APPLICABLE", message, role=role)


def user_changed(version: int) -> Refusal:
    message = f"The account has changed since it was read: it has version {version}. Read it again."
    return Refusal(Kind.PRECONDITION, "USER_CHANGED", message, version=str(version))


def self_suspension() -> Refusal:
    message = "You are signed in with this account. Ask another admin to suspend it."
    return Refusal(Kind.PRECONDITION, "SELF_SUSPENSION", message)


def credentials_wrong() -> Refusal:
    message = "Username or password is wrong. Try again."
    return Refusal(Kind.UNAUTHENTICATED, "CREDENTIALS_WRONG", message)


def too_many_attempts(retry_after: timedelta) -> Refusal:
    seconds = max(1, round(retry_after.total_seconds()))
    message = f"Too many wrong passwords of late. Try again in {seconds} s."
    return Refusal(Kind.EXHAUSTED, "TOO_MANY_ATTEMPTS", message, retry_after=retry_after)


def user_suspended() -> Refusal:
    message = "The account is suspended. Ask the operator."
    return Refusal(Kind.FORBIDDEN, "USER_SUSPENDED", message)


def user_rejected(state_reason: str) -> Refusal:
    message = f"The registration was declined: {state_reason}"
    return Refusal(Kind.FORBIDDEN, "USER_REJECTED", message, stateReason=state_reason)


def refresh_token_unknown() -> Refusal:
    message = "No session has this refresh token. Sign in."
    return Refusal(Kind.UNAUTHENTICATED, "REFRESH_TOKEN_UNKNOWN", message)


def refresh_token_reused() -> Refusal:
    message = "The refresh token was used before, so the session was ended for safety. Sign in."
    return Refusal(Kind.UNAUTHENTICATED, "REFRESH_TOKEN_REUSED", message)


def session_ended() -> Refusal:
    message = "The session ended. Sign in."
    return Refusal(Kind.UNAUTHENTICATED, "SESSION_ENDED", message)


def site_not_found(name: str) -> Refusal:
    message = f"There is no site {name}, or it is not yours."
    return Refusal(Kind.NOT_FOUND, "SITE_NOT_FOUND", message, name=name)


def too_many_sites(limit: int) -> Refusal:
    message = f"At most {limit} sites may be open. Close one."
    return Refusal(Kind.PRECONDITION, "TOO_MANY_SITES", message, limit=str(limit))


def too_many_sites_on_record(limit: int) -> Refusal:
    message = f"At most {limit} sites are kept on record, closed ones too. Ask the operator."
    return Refusal(Kind.PRECONDITION, "TOO_MANY_SITES", message, limit=str(limit))


def terminal_not_found(name: str) -> Refusal:
    message = f"There is no terminal {name}, or it is not yours."
    return Refusal(Kind.NOT_FOUND, "TERMINAL_NOT_FOUND", message, name=name)


def terminal_key_taken() -> Refusal:
    message = "The public key is another terminal's already. Make a new key pair."
    return Refusal(Kind.ALREADY_EXISTS, "TERMINAL_KEY_TAKEN", message)


def too_many_terminals(limit: int) -> Refusal:
    message = f"At most {limit} terminals may be enrolled. Revoke one that is not used."
    return Refusal(Kind.PRECONDITION, "TOO_MANY_TERMINALS", message, limit=str(limit))


def assertion_invalid() -> Refusal:
    message = "The assertion is not one this platform takes. Sign one as the contract says."
    return Refusal(Kind.UNAUTHENTICATED, "ASSERTION_INVALID", message)


def assertion_expired(server_time: datetime) -> Refusal:
    at = server_time.isoformat()
    message = f"The assertion was not made just now. Set the clock to {at} and sign another."
    return Refusal(Kind.UNAUTHENTICATED, "ASSERTION_EXPIRED", message, serverTime=at)


def assertion_replayed() -> Refusal:
    message = "The assertion was used before. Sign a new one."
    return Refusal(Kind.UNAUTHENTICATED, "ASSERTION_REPLAYED", message)


def terminal_revoked(name: str, revoke_time: datetime) -> Refusal:
    at = revoke_time.isoformat()
    message = f"The terminal was revoked at {at}. Export its journal and upload it as its vendor."
    return Refusal(Kind.FORBIDDEN, "TERMINAL_REVOKED", message, name=name, revokeTime=at)
