"""Every error that Macadam raises on purpose, with what a person needs to act on it.

Each error says what was wrong, what was got and expected where that helps, and the next step. Faces turn
them into a CLI line, problem details (RFC 9457) or a foreign protocol's own shape; nothing else formats them.

    MacadamError
    ├── InvalidInput            400  the request, a file or a definition is wrong; the same call fails again
    │   ├── ContractInvalid     422  a data contract does not parse or names what it cannot check
    │   ├── SourceInvalid       422  a source is missing, half-written or of the wrong shape
    │   ├── TooLarge            413  over a size limit
    │   └── SettingInvalid      400  a setting has no usable value
    ├── NotAuthenticated        401  no token, or one that is unknown, expired or revoked
    ├── NotAuthorised           403  known, but no policy allows it (or one forbids it)
    │   └── GateRefused         403  the evidence that the gate asks for is missing or not good enough
    ├── NotFound                404
    ├── Conflict                409  the state moved, or the name is taken; read again and decide
    ├── UserCodeFailed          422  the project's own code (features.py, train.py) raised
    ├── ChecksFailed            422  data broke a table-level rule, so it was not published
    ├── IntegrityError          500  stored evidence is not what was recorded: stop and look
    ├── MissingExtra            501  an optional dependency is not installed
    └── Temporary               503  the same call may work later
        ├── Busy                503  a lock, queue or port is taken
        ├── Unavailable         503  a process or server does not answer
        ├── RateLimited         429  one caller asks faster than it may
        ├── OutcomeUnknown      503  the answer to a commit was cut off: the change may be there or not
        └── StorageFull         507  the disk is full; nothing was changed
"""

from typing import ClassVar


class MacadamError(Exception):
    """The root of the tree.

    what: one sentence on what was wrong. next_step: what to do about it. details: facts for scripts
    (JSON-able), such as the path of the offending field.
    """

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, next_step: str = "", details: dict[str, object] | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.next_step = next_step
        self.details: dict[str, object] = details or {}

    def __str__(self) -> str:
        return f"{self.what} Next: {self.next_step}" if self.next_step else self.what


class InvalidInput(MacadamError):
    code, status, exit_code = "invalid-input", 400, 2


class ContractInvalid(InvalidInput):
    code, status = "contract-invalid", 422


class SourceInvalid(InvalidInput):
    code, status = "source-invalid", 422


class TooLarge(InvalidInput):
    code, status = "too-large", 413


class SettingInvalid(InvalidInput):
    code = "setting-invalid"


class NotAuthenticated(MacadamError):
    code, status, exit_code = "not-authenticated", 401, 3


class NotAuthorised(MacadamError):
    code, status, exit_code = "not-authorised", 403, 4


class GateRefused(NotAuthorised):
    code, exit_code = "gate-refused", 5


class NotFound(MacadamError):
    code, status, exit_code = "not-found", 404, 6


class Conflict(MacadamError):
    code, status, exit_code = "conflict", 409, 7


class UserCodeFailed(MacadamError):
    code, status, exit_code = "user-code-failed", 422, 8


class ChecksFailed(MacadamError):
    code, status, exit_code = "checks-failed", 422, 9


class IntegrityError(MacadamError):
    code, status, exit_code = "integrity", 500, 10


class MissingExtra(MacadamError):
    code, status, exit_code = "missing-extra", 501, 11


class Temporary(MacadamError):
    code, status, exit_code = "temporary", 503, 12


class Busy(Temporary):
    code = "busy"


class Unavailable(Temporary):
    code = "unavailable"


class RateLimited(Temporary):
    code, status = "rate-limited", 429


class OutcomeUnknown(Temporary):
    code = "outcome-unknown"


class StorageFull(Temporary):
    code, status = "storage-full", 507
