"""Who may come in, and how often a password may be tried."""

import stat
from pathlib import Path

import pytest

from webui import passwords
from webui.passwords import Gate, PasswordError, add_user, hashed, read_users


def test_a_user_that_was_added_comes_in_with_the_right_password_alone(tmp_path: Path) -> None:
    file = tmp_path / "users"
    add_user(file, "ann", "correct horse")
    add_user(file, "bob", "battery staple")
    assert "correct horse" not in file.read_text() and stat.S_IMODE(file.stat().st_mode) == 0o600
    gate = Gate(read_users(file))
    assert gate("ann", "correct horse") and gate("bob", "battery staple")
    assert not gate("ann", "battery staple") and not gate("carl", "correct horse") and not gate("", "")


def test_the_same_password_is_hashed_anew(tmp_path: Path) -> None:
    assert hashed("correct horse") != hashed("correct horse")
    file = tmp_path / "users"
    add_user(file, "ann", "first password")
    add_user(file, "ann", "second password")
    gate = Gate(read_users(file))
    assert gate("ann", "second password") and not gate("ann", "first password")


def test_guessing_is_slowed_down_for_that_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(passwords.time, "monotonic", lambda: now[0])
    gate = Gate({"ann": hashed("correct horse"), "bob": hashed("battery staple")})
    for _ in range(passwords.FREE_TRIES):
        assert not gate("ann", "wrong guess")
    assert not gate("ann", "correct horse"), "right, but it has to wait"
    assert gate("bob", "battery staple")
    now[0] += 1.1
    assert gate("ann", "correct horse")
    for tries in range(40):
        gate("ann", "wrong guess")
        now[0] += 10_000 if tries < 39 else 0
    now[0] += passwords.LONGEST_WAIT - 1
    assert not gate("ann", "correct horse")
    now[0] += 2
    assert gate("ann", "correct horse")


@pytest.mark.parametrize("text", ["ann:correct horse", "ann", "ann:scrypt$1$2$3$zz$00", ""])
def test_a_file_with_plain_passwords_or_without_users_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "users"
    file.write_text(text)
    with pytest.raises(PasswordError, match="users"):
        read_users(file)


@pytest.mark.parametrize(
    ("name", "password"), [("a:b", "long enough"), ("", "long enough"), ("ann", "short")]
)
def test_names_and_passwords_that_cannot_be_used(tmp_path: Path, name: str, password: str) -> None:
    with pytest.raises(PasswordError):
        add_user(tmp_path / "users", name, password)
    assert not (tmp_path / "users").exists()
