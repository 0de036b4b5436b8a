"""Who a caller is (the token) and what it may do (its roles)."""

from __future__ import annotations

from typing import Final

from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.config.rbac import v3 as rbac
from envoy_data_plane.envoy.config.route import v3 as envoy_route
from envoy_data_plane.envoy.extensions.filters.http.jwt_authn import v3 as jwt_authn
from envoy_data_plane.envoy.extensions.filters.http.rbac import v3 as http_rbac
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as hcm
from envoy_data_plane.envoy.type.matcher import v3 as matcher
from envoy_data_plane.google.protobuf import Any

from services.gateway.domain.access import Route
from services.gateway.domain.messages import from_control_plane, http_filter

JWT_FILTER: Final = "envoy.filters.http.jwt_authn"
RBAC_FILTER: Final = "envoy.filters.http.rbac"
# The verified claims, under the filter's name, for RBAC, limits and the access log.
PAYLOAD: Final = "token"
PAYLOAD_HEADER: Final = "x-jwt-payload"
ISSUER: Final = "https://tallystick"
AUDIENCE: Final = "tallystick"

_CLOCK_SKEW_SECONDS = 10
# Verified tokens each worker thread remembers: 10 µs instead of 100 for a call. About 2 KB each.
_TOKENS_REMEMBERED = 20_000
_REQUIREMENT = "token"


def authentication() -> hcm.HttpFilter:
    """The place in the chain of the filter that verifies tokens.

    What it does arrives as a resource of its own: a new signing key then leaves the listener, and with it every
    token bucket, as it is, and an old one is forgotten together with the tokens remembered. The listener opens
    only when it has arrived.
    """
    return hcm.HttpFilter(
        name=JWT_FILTER,
        config_discovery=core.ExtensionConfigSource(
            config_source=from_control_plane(),
            type_urls=[
                "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication"
            ],
        ),
    )


def verification(json_web_key_set: str) -> core.TypedExtensionConfig:
    """How tokens are verified: every request needs one, unless its route says otherwise."""
    provider = jwt_authn.JwtProvider(
        issuer=ISSUER,
        audiences=[AUDIENCE],
        require_expiration=True,
        clock_skew_seconds=_CLOCK_SKEW_SECONDS,
        local_jwks=core.DataSource(inline_string=json_web_key_set),
        # Named, because the default also takes tokens from the URL, which is written to the access log.
        from_headers=[jwt_authn.JwtHeader(name="authorization", value_prefix="Bearer ")],
        forward=False,
        forward_payload_header=PAYLOAD_HEADER,
        payload_in_metadata=PAYLOAD,
        jwt_cache_config=jwt_authn.JwtCacheConfig(jwt_cache_size=_TOKENS_REMEMBERED),
    )
    config = jwt_authn.JwtAuthentication(
        providers={"tallystick": provider},
        bypass_cors_preflight=True,
        requirement_map={_REQUIREMENT: jwt_authn.JwtRequirement(provider_name="tallystick")},
        rules=[
            jwt_authn.RequirementRule(
                match=envoy_route.RouteMatch(prefix="/"), requirement_name=_REQUIREMENT
            )
        ],
    )
    return core.TypedExtensionConfig(name=JWT_FILTER, typed_config=Any.pack(config))


def authorization() -> hcm.HttpFilter:
    """The filter that checks roles: nobody may call what has no `permission` of its own."""
    return http_filter(RBAC_FILTER, http_rbac.Rbac(rules=rbac.Rbac(action=rbac.RbacAction.ALLOW)))


def permission(route: Route) -> Any:
    """Who may call an RPC: anybody, or bearers of one of its roles.

    A call is a POST: services drop whatever else comes, which would count against the replica.
    """
    principals = [_role(role) for role in route.roles] or [rbac.Principal(any=True)]
    post = envoy_route.HeaderMatcher(
        name=":method", string_match=matcher.StringMatcher(exact="POST")
    )
    policy = rbac.Policy(permissions=[rbac.Permission(header=post)], principals=principals)
    rules = rbac.Rbac(action=rbac.RbacAction.ALLOW, policies={"contract": policy})
    return Any.pack(http_rbac.RbacPerRoute(rbac=http_rbac.Rbac(rules=rules)))


def no_token_needed() -> Any:
    """For a route: tokens are not looked at."""
    return Any.pack(jwt_authn.PerRouteConfig(disabled=True))


def _role(role: str) -> rbac.Principal:
    one_of = matcher.ValueMatcher(string_match=matcher.StringMatcher(exact=role))
    return rbac.Principal(
        sourced_metadata=rbac.SourcedMetadata(
            metadata_source=rbac.MetadataSource.DYNAMIC,
            metadata_matcher=matcher.MetadataMatcher(
                filter=JWT_FILTER,
                path=[matcher.MetadataMatcherPathSegment(key=key) for key in (PAYLOAD, "roles")],
                value=matcher.ValueMatcher(list_match=matcher.ListMatcher(one_of=one_of)),
            ),
        )
    )
