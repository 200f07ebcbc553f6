"""Who may log in: a file with a line a user, holding no password but a slow, salted hash of it."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from difflora import DiffloraError

COST, BLOCK, LANES = 2**14, 8, 1  # of scrypt (RFC 7914): 16 MiB and some 50 ms a try
FREE_TRIES = 5
LONGEST_WAIT = 900.0
_NOBODY = f"scrypt${COST}${BLOCK}${LANES}${'00' * 16}${'00' * 32}"


class PasswordError(DiffloraError):
    """A file of users that cannot be used, or a user or password that cannot be added."""


def hashed(password: str) -> str:
    """A line's second half: `scrypt$cost$block$lanes$salt$hash`, another one each time."""
    salt = secrets.token_bytes(16)
    return f"scrypt${COST}${BLOCK}${LANES}${salt.hex()}${_scrypt(password, salt, COST, BLOCK, LANES).hex()}"


def read_users(path: Path) -> dict[str, str]:
    """User -> hash. Raises PasswordError naming each line that is none, or if there is no user."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise PasswordError(
            f"{path}: {error.strerror}. `difflora ui --auth {path} --add-user NAME` makes it."
        ) from error
    users: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        name, colon, text = line.strip().partition(":")
        if not line.strip():
            continue
        if not colon or not name or not _is_hash(text):
            raise PasswordError(
                f"{path}, line {number}: expected NAME:scrypt$..., as --add-user writes it; passwords are "
                "never kept as they are."
            )
        users[name] = text
    if not users:
        raise PasswordError(f"{path} names no user: add one with --add-user NAME.")
    return users


def add_user(path: Path, name: str, password: str) -> None:
    """Adds a user, or gives one another password. Raises PasswordError if either cannot be used."""
    if not name or ":" in name or not name.isprintable() or name != name.strip():
        raise PasswordError(f"{name!r} cannot be a user's name: use letters and digits.")
    if len(password) < 8:
        raise PasswordError(f"the password has {len(password)} letters, expected at least 8.")
    users = read_users(path) if path.exists() else {}
    users[name] = hashed(password)
    path.touch(mode=0o600)
    path.write_text("".join(f"{user}:{text}\n" for user, text in users.items()), encoding="utf-8")


class Gate:
    """Says who may come in; who fails again and again waits twice as long each time."""

    def __init__(self, users: Mapping[str, str]) -> None:
        self._users = dict(users)
        self._failures: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()

    def __call__(self, name: str, password: str) -> bool:
        """Whether the password is the user's; False without a look while the name has to wait."""
        with self._lock:
            tries, until = self._failures.get(name, (0, 0.0))
            if time.monotonic() < until:
                return False
        # A name that there is not costs as much time as one that there is.
        right = _matches(password, self._users.get(name, _NOBODY)) and name in self._users
        with self._lock:
            if right:
                self._failures.pop(name, None)
            else:
                wait = min(LONGEST_WAIT, 2.0 ** (tries + 1 - FREE_TRIES)) if tries + 1 >= FREE_TRIES else 0.0
                self._failures[name] = (tries + 1, time.monotonic() + wait)
        return right


def _matches(password: str, text: str) -> bool:
    _, cost, block, lanes, salt, wanted = text.split("$")
    got = _scrypt(password, bytes.fromhex(salt), int(cost), int(block), int(lanes))
    return hmac.compare_digest(got, bytes.fromhex(wanted))


def _is_hash(text: str) -> bool:
    parts = text.split("$")
    if len(parts) != 6 or parts[0] != "scrypt" or not all(part.isdecimal() for part in parts[1:4]):
        return False
    try:
        return len(bytes.fromhex(parts[4])) == 16 and len(bytes.fromhex(parts[5])) == 32
    except ValueError:
        return False


def _scrypt(password: str, salt: bytes, cost: int, block: int, lanes: int) -> bytes:
    return hashlib.scrypt(
        password.encode(), salt=salt, n=cost, r=block, p=lanes, maxmem=256 * cost * block, dklen=32
    )
