"""Roles of users, and loopback addresses."""

import pytest

from pneumoscope.core.addresses import is_loopback
from pneumoscope.core.errors import ForbiddenError
from pneumoscope.service.auth.users import ROLES, AuthenticatedUser


@pytest.mark.parametrize(
    ("role", "allowed"),
    [
        ("sender", {"sender"}),
        ("reader", {"sender", "reader"}),
        ("administrator", {"sender", "reader", "administrator"}),
    ],
)
def test_role_allows_what_the_lower_ones_allow(role, allowed):
    user = AuthenticatedUser("ward-3", role)
    assert {each for each in ROLES if user.has_role(each)} == allowed
    for each in ROLES:
        if each in allowed:
            user.require_role(each)
        else:
            with pytest.raises(ForbiddenError, match=f"'{role}' may not do this; it requires the role '{each}'"):
                user.require_role(each)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]"])
def test_loopback_addresses(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "127.0.0.1.nip.io", ""])
def test_public_addresses(host):
    assert not is_loopback(host)
