"""Users and their roles."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal, get_args

from pneumoscope.core.errors import ForbiddenError, UsageError

__all__ = [
    "COMMAND_LINE",
    "LOCAL",
    "LOCAL_USER",
    "RETENTION",
    "ROLES",
    "AuthenticatedUser",
    "Role",
    "validate_name",
]

Role = Literal["sender", "reader", "administrator"]
ROLES: tuple[Role, ...] = get_args(Role)  # in ascending order: each includes the rights of the previous roles
LOCAL = "local"  # the user of a service without authentication
RETENTION = "retention"  # the service itself, when it removes expired images
COMMAND_LINE = "command-line"  # a person with access to the database
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")


@dataclasses.dataclass(frozen=True, slots=True)
class AuthenticatedUser:
    """The user of a request.

    Attributes:
        name: Identifies the user in the audit log and in reviews.
        role: "sender" sends images and gets their predictions through the API; "reader" also uses the web interface,
            stores reviews and corrects identities; "administrator" also deletes data and manages tokens.
        token_id: Id of the user's token, if any. Revoking the token signs the user out.
    """

    name: str
    role: Role
    token_id: str = ""

    def has_role(self, role: Role) -> bool:
        """Return whether the user has the rights of a role."""
        return ROLES.index(self.role) >= ROLES.index(role)

    def require_role(self, role: Role) -> None:
        """Raise ForbiddenError if the user lacks the rights of a role."""
        if not self.has_role(role):
            raise ForbiddenError(
                f"the role {self.role!r} may not do this; it requires the role {role!r}",
                hint="Ask an administrator for a token",
            )


LOCAL_USER = AuthenticatedUser(LOCAL, "administrator")


def validate_name(name: str) -> None:
    """Raise UsageError if a user name is invalid or reserved."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:80]!r} is not a name of a user", hint="Use 1 to 64 letters, digits and the characters _ . @ -"
        )
    if name in (LOCAL, RETENTION, COMMAND_LINE):
        raise UsageError(f"the name {name!r} is reserved", hint="Choose another name")
