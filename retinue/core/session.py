"""The session folder: where one cluster's processes of this user meet on this machine.

    $RETINUE_TEMP_DIR (default /tmp/retinue-<uid>, 0700)
      s-<started>-<random>/        one session
        lock                       shared flock of every living process of it
        token                      0600
        cluster.json               how to find the cluster; written last
        head.sock  head.db  logs/  n-<node>/...

Lives here: making, finding, holding and removing these folders, and the token. Does not: starting
processes (`launch.py`) or talking to them. A session whose lock nobody holds is dead, whatever lies in it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from retinue.core import forks, strays
from retinue.core.wire.messages import Address

TEMP_DIR_VARIABLE = "RETINUE_TEMP_DIR"
TOKEN_VARIABLE = "RETINUE_TOKEN"
TOKEN_FILE_VARIABLE = "RETINUE_TOKEN_FILE"
SESSION_PREFIX = "s-"
NEW_LOCK_PREFIX = ".lock-"
CLUSTER_FILE = "cluster.json"
# A folder without a lock is one that is being made; after this long its maker is dead.
UNLOCKED_AGE_S = 60.0


class ClusterFile(msgspec.Struct, frozen=True):
    """What a driver needs to join the cluster, as `cluster.json` says it."""

    cluster_id: str
    session_dir: str
    token_file: str
    head: Address
    agent: Address | None = None  # the agent of this machine that drivers register with
    agent_pid: int = 0
    head_pid: int = 0
    is_private: bool = False  # belongs to a driver and ends with it
    is_head_node: bool = True
    started_at: float = 0.0  # wall clock
    admin: str = ""  # the admin server's URL


@dataclass(slots=True)
class Session:
    """A session folder that this process holds. The last process to `close()` it removes it."""

    dir: str
    cluster_id: str
    token: bytes
    lock_fd: int
    pid: int = field(default_factory=os.getpid)

    @property
    def logs_dir(self) -> str:
        return os.path.join(self.dir, "logs")

    @property
    def token_file(self) -> str:
        return os.path.join(self.dir, "token")

    def path(self, *names: str) -> str:
        return os.path.join(self.dir, *names)

    def node_dir(self, node_id: bytes) -> str:
        """The folder of one node agent, made if it is not there."""
        path = self.path(f"n-{node_id.hex()[:8]}")
        os.makedirs(path, mode=0o700, exist_ok=True)
        return path

    def hold(self) -> int:
        """One more shared lock on the folder, as a descriptor to hand to a child process."""
        return _hold(self.path("lock"))

    def publish(self, cluster: ClusterFile) -> None:
        """Let `find_clusters` see the cluster; replaces what was published before."""
        write_private(self.path(CLUSTER_FILE), msgspec.json.encode(cluster))

    def close(self) -> None:
        """Give up the lock; the last one to leave removes the folder. May be called twice.

        In a process that was forked from the holder it does nothing.
        """
        fd, self.lock_fd = self.lock_fd, -1
        if fd >= 0 and os.getpid() == self.pid:
            forks.forget(fd)
            leave(self.dir, fd)


def temp_dir(override: str | None = None) -> str:
    """The folder of this user's sessions; made 0700 if it is not there.

    Raises PermissionError if it belongs to another user or others may enter it.
    """
    path = override or os.environ.get(TEMP_DIR_VARIABLE) or f"/tmp/retinue-{os.getuid()}"
    path = os.path.abspath(path)
    is_given = bool(override or os.environ.get(TEMP_DIR_VARIABLE))
    if is_given:
        os.makedirs(path, mode=0o700, exist_ok=True)
        return path
    try:
        os.mkdir(path, mode=0o700)
    except FileExistsError:
        pass
    status = os.lstat(path)
    # /tmp is everybody's: a stranger may have made the folder first, and would see our sockets and token.
    if (
        not stat.S_ISDIR(status.st_mode)
        or status.st_uid != os.getuid()
        or stat.S_IMODE(status.st_mode) & 0o077
    ):
        raise PermissionError(
            f"{path} must be a folder of yours with mode 0700; remove it or set {TEMP_DIR_VARIABLE}"
        )
    return path


def new_session(base: str | None = None, *, cluster_id: str = "", token: bytes | None = None) -> Session:
    """Make a session folder and hold it. `token` None: from the environment, else a new one."""
    base = temp_dir(base)
    name = f"{SESSION_PREFIX}{int(time.time() * 1000):x}-{secrets.token_hex(3)}"
    path = os.path.join(base, name)
    # The lock is taken before the folder can be seen, so that no cleaner ever finds it free.
    lock_path = os.path.join(base, NEW_LOCK_PREFIX + name)
    lock_fd = _hold(lock_path, create=True)
    forks.close_in_forks(lock_fd)
    os.mkdir(path, mode=0o700)
    os.rename(lock_path, os.path.join(path, "lock"))
    os.mkdir(os.path.join(path, "logs"), mode=0o700)
    token = token or token_from_environment() or secrets.token_hex(32).encode()
    session = Session(path, cluster_id or secrets.token_hex(16), token, lock_fd)
    write_private(session.token_file, token)
    return session


def token_from_environment() -> bytes | None:
    """RETINUE_TOKEN, else the text of RETINUE_TOKEN_FILE, else None. Raises ValueError for an empty one."""
    text = os.environ.get(TOKEN_VARIABLE)
    if text is not None:
        return _checked_token(text.encode(), TOKEN_VARIABLE)
    path = os.environ.get(TOKEN_FILE_VARIABLE)
    if path is not None:
        return read_token(path)
    return None


def read_token(path: str) -> bytes:
    with open(path, "rb") as file:
        return _checked_token(file.read(), path)


def _checked_token(token: bytes, source: str) -> bytes:
    token = token.strip()
    if not token:
        raise ValueError(f"{source} holds an empty token")
    return token


def write_private(path: str, data: bytes) -> None:
    """Write a 0600 file so that readers see the old or the new text, never half of it."""
    temporary = f"{path}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
    os.rename(temporary, path)


# --- finding -------------------------------------------------------------------------------------------


def find_clusters(base: str | None = None) -> Iterator[ClusterFile]:
    """This user's live clusters on this machine, the newest first."""
    base = temp_dir(base)
    for name in sorted(_session_names(base), key=_started, reverse=True):
        path = os.path.join(base, name)
        try:
            with open(os.path.join(path, CLUSTER_FILE), "rb") as file:
                cluster = msgspec.json.decode(file.read(), type=ClusterFile)
        except (OSError, msgspec.DecodeError):
            continue  # being made, or not ours to understand
        if _is_held(path):
            yield cluster


def find_cluster(base: str | None = None, *, include_private: bool = False) -> ClusterFile | None:
    """The newest live cluster; those that belong to a driver, and end with it, only if asked for."""
    for cluster in find_clusters(base):
        if include_private or not cluster.is_private:
            return cluster
    return None


def find_cluster_at(address: str, base: str | None = None) -> ClusterFile | None:
    """The live cluster of this machine whose head listens on `address`: "host:port", or its Unix socket."""
    for cluster in find_clusters(base):
        if address in (f"{cluster.head.host}:{cluster.head.port}", cluster.head.path):
            return cluster
    return None


def cluster_token(cluster: ClusterFile) -> bytes:
    """The token of a cluster that was found."""
    return token_from_environment() or read_token(cluster.token_file)


# --- locks and cleaning -----------------------------------------------------------------------------------


def leave(session_dir: str, lock_fd: int) -> None:
    """Give up a lock; whoever finds that nobody else holds one removes the folder."""
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock_fd)  # others live on
        return
    try:
        _remove_tree(session_dir)
    finally:
        os.close(lock_fd)


def clean_stale(base: str | None = None) -> int:
    """Remove the sessions that no living process holds; returns how many."""
    base = temp_dir(base)
    removed = 0
    for name in _session_names(base):
        removed += _clean_one(os.path.join(base, name))
    for name in os.listdir(base):
        if name.startswith(NEW_LOCK_PREFIX):
            _clean_lock(os.path.join(base, name))
    return removed


def clean_if_free(session_dir: str) -> bool:
    """Remove one session if no living process holds it; returns whether it did."""
    return os.path.isdir(session_dir) and _clean_one(session_dir)


def _clean_one(path: str) -> bool:
    lock_path = os.path.join(path, "lock")
    try:
        fd = os.open(lock_path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return _clean_unlocked(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove_tree(path)
    except OSError:
        return False  # alive, or another cleaner is at it
    finally:
        os.close(fd)
    return True


def _clean_unlocked(path: str) -> bool:
    try:
        if time.time() - os.stat(path).st_mtime < UNLOCKED_AGE_S:
            return False
        _remove_tree(path)
    except OSError:
        return False
    return True


def _clean_lock(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except OSError:
        pass  # its maker lives, or has moved it just now
    finally:
        os.close(fd)


def _session_names(base: str) -> list[str]:
    return [name for name in os.listdir(base) if name.startswith(SESSION_PREFIX)]


def _started(name: str) -> int:
    try:
        return int(name.split("-")[1], 16)
    except (IndexError, ValueError):
        return 0


def _is_held(path: str) -> bool:
    try:
        fd = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _hold(path: str, *, create: bool = False) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


def _remove_tree(path: str) -> None:
    """End what is left of its nodes, and remove it.

    `shutil.rmtree` without an import of 5 ms. The lock goes last: until then the folder is recognised.
    """
    lock = os.path.join(path, "lock")
    for name in os.listdir(path):
        strays.end_strays_of_folder(name)  # an agent that ended in order, or its zygote, had removed it
    for folder, folders, files in os.walk(path, topdown=False):
        for name in files:
            full = os.path.join(folder, name)
            if full != lock:
                _ignore_missing(os.unlink, full)
        for name in folders:
            full = os.path.join(folder, name)
            _ignore_missing(os.unlink if os.path.islink(full) else os.rmdir, full)
    _ignore_missing(os.unlink, lock)
    _ignore_missing(os.rmdir, path)


def _ignore_missing(remove: object, path: str) -> None:
    try:
        remove(path)  # type: ignore[operator]
    except FileNotFoundError:
        pass
