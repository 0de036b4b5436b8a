"""Token buckets: one per rate class and caller, kept in Envoy."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from envoy_data_plane.envoy.config.route import v3 as envoy_route
from envoy_data_plane.envoy.extensions.common.ratelimit import v3 as ratelimit
from envoy_data_plane.envoy.extensions.filters.http.local_ratelimit import v3 as local_ratelimit
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as hcm
from envoy_data_plane.envoy.type import v3 as types
from envoy_data_plane.envoy.type.metadata import v3 as type_metadata

from services.gateway.domain import refusals, replies
from services.gateway.domain.access import Bucket, Route
from services.gateway.domain.authentication import JWT_FILTER, PAYLOAD
from services.gateway.domain.messages import always, header, http_filter

LIMIT_FILTER = "envoy.filters.http.local_ratelimit"

# A route's class under one of two keys says whose bucket a call draws from.
_CLASS_BY_SUBJECT = "class_by_subject"
_CLASS_BY_ADDRESS = "class_by_address"
_COST = "cost"
_RETRY_AFTER = "retry_after"
# Entries of a descriptor.
_CLASS = "class"
_SUBJECT = "subject"
_REMOTE_ADDRESS = "remote_address"
# Never the limit of a call: every route has a class.
_UNCLASSED = types.TokenBucket(
    max_tokens=1_000_000, tokens_per_fill=1_000_000, fill_interval=timedelta(seconds=1)
)


def rate_limit(buckets: Mapping[str, Bucket], subjects_max: int) -> hcm.HttpFilter:
    """The filter that draws tokens.

    What a call draws, and from which class, is read from its route, so that a changed contract leaves the filter, and
    with it every bucket, as it is. The caller is the subject of the verified token or, without one, the address.
    """
    return http_filter(
        LIMIT_FILTER,
        local_ratelimit.LocalRateLimit(
            stat_prefix="calls",
            filter_enabled=always(),
            filter_enforced=always(),
            token_bucket=_UNCLASSED,
            always_consume_default_token_bucket=False,
            rate_limited_as_resource_exhausted=True,
            enable_x_ratelimit_headers=ratelimit.XRateLimitHeadersRfcVersion.DRAFT_VERSION_03,
            response_headers_to_add=[header("retry-after", _of_route(_RETRY_AFTER))],
            max_dynamic_descriptors=subjects_max,
            rate_limits=[
                _draw(_class_of_route(_CLASS_BY_SUBJECT), _token_subject()),
                _draw(
                    _class_of_route(_CLASS_BY_ADDRESS),
                    envoy_route.RateLimitAction(
                        remote_address=envoy_route.RateLimitActionRemoteAddress()
                    ),
                ),
            ],
            descriptors=[
                _descriptor(name, caller, bucket)
                for name, bucket in sorted(buckets.items())
                for caller in (_SUBJECT, _REMOTE_ADDRESS)
            ],
        ),
    )


def metadata(
    route: Route, buckets: Mapping[str, Bucket], encode: replies.Encode
) -> dict[str, str | int | dict[str, str]]:
    """What `rate_limit` and the reply to a refused call read from a route."""
    retry_after = route.retry_after(buckets[route.rate_class])
    refusal = refusals.rate_limited(route.rate_class, retry_after)
    return {
        _CLASS_BY_ADDRESS if route.public else _CLASS_BY_SUBJECT: route.rate_class,
        _COST: route.rate_cost,
        _RETRY_AFTER: str(int(retry_after.total_seconds())),
        replies.RATE_LIMITED: replies.metadata(encode(refusal)),
    }


def _draw(*actions: envoy_route.RateLimitAction) -> envoy_route.RateLimit:
    # An action that finds nothing makes the whole of it void: a call without a token draws by address only.
    return envoy_route.RateLimit(
        actions=list(actions),
        hits_addend=envoy_route.RateLimitHitsAddend(format=_of_route(_COST)),
    )


def _descriptor(name: str, caller: str, bucket: Bucket) -> ratelimit.LocalRateLimitDescriptor:
    return ratelimit.LocalRateLimitDescriptor(
        entries=[
            ratelimit.RateLimitDescriptorEntry(key=_CLASS, value=name),
            # No value: a bucket for each one seen.
            ratelimit.RateLimitDescriptorEntry(key=caller),
        ],
        token_bucket=types.TokenBucket(
            max_tokens=bucket.max_tokens,
            tokens_per_fill=bucket.tokens_per_fill,
            fill_interval=bucket.fill_interval,
        ),
    )


def _class_of_route(key: str) -> envoy_route.RateLimitAction:
    return envoy_route.RateLimitAction(
        metadata=envoy_route.RateLimitActionMetaData(
            descriptor_key=_CLASS,
            source=envoy_route.RateLimitActionMetaDataSource.ROUTE_ENTRY,
            metadata_key=_metadata_key(replies.ROUTE_METADATA, key),
        )
    )


def _token_subject() -> envoy_route.RateLimitAction:
    return envoy_route.RateLimitAction(
        metadata=envoy_route.RateLimitActionMetaData(
            descriptor_key=_SUBJECT,
            source=envoy_route.RateLimitActionMetaDataSource.DYNAMIC,
            metadata_key=_metadata_key(JWT_FILTER, PAYLOAD, "sub"),
        )
    )


def _metadata_key(namespace: str, *path: str) -> type_metadata.MetadataKey:
    return type_metadata.MetadataKey(
        key=namespace, path=[type_metadata.MetadataKeyPathSegment(key=key) for key in path]
    )


def _of_route(key: str) -> str:
    return f"%METADATA(ROUTE:{replies.ROUTE_METADATA}:{key})%"
