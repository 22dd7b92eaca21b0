"""Authentication: users and roles, bearer tokens, browser sessions, sign-in codes and OpenID Connect."""
