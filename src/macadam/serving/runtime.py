"""What a gateway holds in memory: loaded models behind their endpoints, and who may call them.

A new deployment is loaded, checked against its signature and digest and warmed before it takes the place of the old
one; if it cannot be loaded, the old one goes on answering. Access changes at once and waits for no model.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from macadam.access.engine import Engine
from macadam.access.revocation import Watch
from macadam.errors import InvalidInput, MacadamError, Unavailable
from macadam.features.online import OnlineService, compile_service
from macadam.lazy import lazy
from macadam.models import artifact
from macadam.models.signature import TENSOR, Encoder, Signature
from macadam.operations import Decision, Granted
from macadam.ports import Objects
from macadam.serving.state import ServingState
from macadam.serving.types import Deployment

if TYPE_CHECKING:
    import numpy as np
else:
    np = lazy("numpy")

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 5.0
"""Between two attempts to load what could not be loaded: a restored file is found by itself."""
_WARM_ROWS = (1, 8)


class Model:
    """One version's ONNX session. Not for two threads at once."""

    def __init__(self, data: bytes, signature: Signature) -> None:
        """Raises InvalidInput if ONNX Runtime does not take the bytes."""
        try:
            # One thread: requests share the cores by being many, not by splitting one.
            self._session = artifact.session(data, threads=1)
        except Exception as error:  # ONNX Runtime's errors share no base
            raise InvalidInput(
                f"ONNX Runtime does not load the model: {error}", next_step="Register it again."
            ) from error
        self.signature = signature
        output = signature.outputs[0]
        self.is_probability = output.kind == "probability"
        self._tensors = [output.tensor]
        self._column = output.column

    def scores(self, rows: Sequence[Sequence[float]]) -> list[float]:
        """One float per row. Raises what ONNX Runtime raises."""
        with np.errstate(over="ignore"):  # beyond float32 is infinite, as in training
            given = np.array(rows, dtype=np.float32)
        found = self._session.run(self._tensors, {TENSOR: given})[0]
        return found.reshape(len(rows), -1)[:, self._column].tolist()  # type: ignore[no-any-return]

    def warm(self) -> None:
        """The first runs of a session allocate; they happen before anybody waits for them."""
        for count in _WARM_ROWS:
            self.scores([[0.0] * len(self.signature.inputs)] * count)


class Serving:
    """One endpoint as it answers now."""

    def __init__(self, deployment: Deployment, model: Model) -> None:
        """Raises InvalidInput if the feature service does not compile."""
        self.deployment = deployment
        self.asset = f"endpoint:{deployment.endpoint}"
        self.model = model
        self.encode = Encoder(model.signature)
        self.service: OnlineService | None = compile_service(deployment.service) if deployment.service else None
        self.inputs = frozenset(model.signature.names)
        self.personal = deployment.personal


class Slot(msgspec.Struct, kw_only=True):
    """An endpoint: what shall answer, what does, and why they differ if they do. failed: monotonic seconds."""

    wanted: Deployment
    serving: Serving | None = None
    problem: MacadamError | None = None
    failed: float = 0.0

    @property
    def is_due(self) -> bool:
        """Whether something is to be loaded, and it is time to."""
        if self.serving is not None and self.serving.deployment.id == self.wanted.id:
            return False
        return not self.failed or time.monotonic() - self.failed > _RETRY_SECONDS


def _granted(wanted: Deployment) -> Granted:
    """Whoever deployed it was allowed to: the gateway reads the model on the word of that deployment's leaf."""
    decision = Decision(id=wanted.id, allowed=True, policies=("deployment",), policy_set="")
    return Granted(decision, "models:read", f"model:{wanted.model}")


class Runtime:
    """Endpoints and access of the newest state. `apply` and `load` are called by one thread at a time, never at once
    with each other; readers see either the old or the new.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._models: dict[tuple[str, str, str], Model] = {}
        self._keys: tuple[str, ...] = ()
        self.engine: Engine | None = None
        self.revocations = Watch()
        self.revocation_key = ""
        self.revocation_floor = 0
        self.slots: dict[tuple[str, str], Slot] = {}

    def apply(self, state: ServingState, engine: Engine) -> None:
        """Takes over who may do what, and which endpoints there are; models follow with `load`."""
        slots: dict[tuple[str, str], Slot] = {}
        for project, endpoints in state.endpoints.items():
            for name, deployment in endpoints.items():
                old = self.slots.get((project, name))
                if old is not None and old.wanted.id == deployment.id:
                    slots[project, name] = old
                else:
                    slots[project, name] = Slot(wanted=deployment, serving=old.serving if old else None)
        self.slots = slots
        self.engine = engine
        self.revocation_key, self.revocation_floor = state.revocation_key, state.revocation_number
        self._keys = state.model_keys

    @property
    def due(self) -> list[Slot]:
        return [slot for slot in self.slots.values() if slot.is_due]

    def load(self, slot: Slot, ready: Callable[[Serving], None]) -> None:
        """Loads what the slot wants. ready: called with it before it answers. Failures stay in the slot, and are said."""
        wanted = slot.wanted
        try:
            serving = Serving(wanted, self._model(wanted))
            ready(serving)
        except MacadamError as error:
            self._fail(slot, error)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's and numpy's errors share no base
            self._fail(slot, Unavailable(f"{wanted.version} does not run: {error}", next_step="Look at its artifact."))
        else:
            slot.serving, slot.problem, slot.failed = serving, None, 0.0
            _log.info("%s/%s answers with %s", wanted.project, wanted.endpoint, wanted.version)

    def _fail(self, slot: Slot, error: MacadamError) -> None:
        stays = f"{slot.serving.deployment.version} goes on" if slot.serving else "nothing answers there"
        if not slot.failed or slot.problem is None or slot.problem.what != error.what:
            where = f"{slot.wanted.project}/{slot.wanted.endpoint}"
            _log.error("%s cannot be loaded at %s, %s: %s", slot.wanted.version, where, stays, error)
        slot.problem, slot.failed = error, time.monotonic()

    def _model(self, wanted: Deployment) -> Model:
        key = (wanted.artifact, wanted.signature, wanted.model_signature)
        known = self._models.get(key)
        if known is None:
            known = Model(*artifact.load_signed(_granted(wanted), self._objects, *key, self._keys, what=wanted.version))
            known.warm()
            self._models[key] = known
        return known

    def forget_unused(self) -> None:
        """Drops models that nothing answers with."""
        used: set[Any] = {id(slot.serving.model) for slot in self.slots.values() if slot.serving}
        self._models = {key: model for key, model in self._models.items() if id(model) in used}
