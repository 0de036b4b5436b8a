"""Every way the gateway itself says no: `gateway.v1.ErrorReason`, one function each."""

from __future__ import annotations

from datetime import timedelta

from services.refusal import Kind, Refusal


def rate_limited(rate_class: str, retry_after: timedelta) -> Refusal:
    seconds = str(int(retry_after.total_seconds()))
    message = (
        f"Too many calls of class {rate_class} in a short time. Repeat this one in {seconds} s."
    )
    return Refusal(
        Kind.EXHAUSTED,
        "RATE_LIMITED",
        message,
        retry_after=retry_after,
        rateClass=rate_class,
        retryAfterSeconds=seconds,
    )


def method_unknown() -> Refusal:
    message = "There is no such method here. Check its name, and that your contract is not newer than this server."
    return Refusal(Kind.UNIMPLEMENTED, "METHOD_UNKNOWN", message)


def message_too_large(bytes_max: int) -> Refusal:
    message = f"The request is larger than {bytes_max} bytes. Send less at a time."
    return Refusal(Kind.EXHAUSTED, "MESSAGE_TOO_LARGE", message, bytesMax=str(bytes_max))


def request_malformed() -> Refusal:
    message = "The request is not well-formed. Its path must hold no escaped slash and no NUL."
    return Refusal(Kind.INVALID, "REQUEST_MALFORMED", message)


def encoding_unsupported() -> Refusal:
    message = (
        "The request is not in a form this server reads. Send application/grpc, application/grpc-web or "
        "application/grpc-web-text, with messages as they are or compressed by gzip or deflate."
    )
    return Refusal(Kind.UNIMPLEMENTED, "ENCODING_UNSUPPORTED", message)


def call_timed_out() -> Refusal:
    message = (
        "The call ran out of time; its outcome is unknown. Repeat it with the same request_id."
    )
    return Refusal(Kind.DEADLINE, "CALL_TIMED_OUT", message)
