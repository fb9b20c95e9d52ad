"""The main program of a worker process: rebuild the work, then do it for one part after the other."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection

from arrowds.errors import ArrowdsError

_SECONDS_BETWEEN_LOOKS = 0.2


def main() -> None:
    """Serve the connection whose file descriptor is the first argument until the other side closes it."""
    connection = Connection(int(sys.argv[1]))
    threading.Thread(target=_end_with_parent, args=(int(sys.argv[2]),), daemon=True).start()
    status = 1
    try:
        sys.path[:] = connection.recv()
        payload = connection.recv_bytes()
        _serve(connection, payload)
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        status = 0  # the run has ended or was interrupted; nobody waits for an answer
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # No teardown: threads of the dataset's libraries must not hold up the end of the run.
        os._exit(status)


def _end_with_parent(parent: int) -> None:
    """End this process soon after its parent was killed: a part that it wrote later could overwrite a newer run's."""
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)


def _serve(connection: Connection, payload: bytes) -> None:
    try:
        work = pickle.loads(payload)
    except Exception as error:
        connection.recv()
        connection.send(("unloadable", f"{type(error).__name__}: {error}", traceback.format_exc()))
        return
    while True:
        part = connection.recv()
        try:
            work(part)
            outcome: tuple[str, object, str] = ("done", None, "")
        except Exception as error:
            outcome = ("error", _sendable(error), traceback.format_exc())
        connection.send(outcome)


def _sendable(error: Exception) -> Exception:
    """Return the error, or an ArrowdsError with its text when it can't be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return ArrowdsError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    main()
