"""The compute process: holds models, runs one task at a time, and knows nothing of queues.

Contract (JSON, one object per line; parent to child on stdin, child to parent on the real stdout):

    child   {"ready": true, "pid": n}                                        once, when it can take orders
    parent  {"op": "warm"}                                                   load the default model; answered by {"warm": true}
    parent  {"op": "run", "run": id, "attempt": n, "spec": text, "folder": path, "previous": [paths]}
    child   {"run": id, "attempt": n, "report": {...}}                       progress, a few a second
    child   {"run": id, "attempt": n, "outcome": {...}}                      exactly one per order, the last message of it
    parent  {"op": "stop"}                                                   end the present order soon; what is recorded stays

End of input is the order to die, at once: the parent is gone, and whoever takes over works in another folder. A child that
does not answer is killed by its parent. Nothing on the wire is executed.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from fdcore import config as configuration
from fdcore.config import MB
from fdcore.errors import FdcoreError, StoreError
from fdcore.spec import ModelChoice, Spec
from fdcore.tasks.run import Limits, Outcome, Report, execute

# Models kept in memory by one child.
KEPT_MODELS = 2


class Child:
    """The loop of a compute process over any pair of text streams."""

    def __init__(self, incoming: TextIO, outgoing: TextIO, config: configuration.Config) -> None:
        self._incoming, self._outgoing, self._config = incoming, outgoing, config
        self._orders: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._stop = threading.Event()
        self._models: dict[ModelChoice, Any] = {}
        self._lock = threading.Lock()

    def serve(self, on_end_of_input=lambda: os._exit(0)) -> None:
        """Answer orders until the input ends."""
        threading.Thread(target=self._listen, args=(on_end_of_input,), daemon=True, name="orders").start()
        self._send({"ready": True, "pid": os.getpid()})
        while (order := self._orders.get()) is not None:
            if order["op"] == "warm":
                self._warm()
                self._send({"warm": True})
            else:
                self._run(order)

    def _listen(self, on_end_of_input) -> None:
        for line in self._incoming:
            order = json.loads(line)
            if order["op"] == "stop":
                self._stop.set()
            else:
                # Here, not where the run begins: a stop that follows on the heels of an order is meant for it.
                self._stop.clear()
                self._orders.put(order)
        self._orders.put(None)
        # In the middle of a computation the main thread would not look.
        on_end_of_input()

    def _send(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._outgoing.write(json.dumps(message) + "\n")
            self._outgoing.flush()

    def _run(self, order: dict[str, Any]) -> None:
        names = {"run": order["run"], "attempt": order["attempt"]}

        def tell(report: Report) -> None:
            self._send({**names, "report": asdict(report)})

        try:
            spec = Spec.from_json(order["spec"])
            outcome = execute(
                spec,
                self._structures(order["run"], spec),
                self._model,
                Path(order["folder"]),
                previous=[p for p in map(Path, order["previous"]) if p.is_dir()],
                report=tell,
                should_stop=self._stop.is_set,
                limits=Limits(
                    checkpoint_seconds=self._config.checkpoint_seconds,
                    max_bytes=self._config.max_run_MB * MB or float("inf"),
                ),
            )
        except FdcoreError as error:
            outcome = Outcome("failed", error=error.message, hint=error.hint)
        except Exception as error:
            # A fault of ours or of a library: the log has the whole of it, the person the essence.
            traceback.print_exc()
            outcome = Outcome(
                "failed",
                error=f"The run ended in an error that was not foreseen ({type(error).__name__}: {str(error)[:200]}).",
                hint="Try another model or structure; the operator finds the details in the worker's log.",
            )
        if outcome.state == "failed":
            # After a failure the state of libraries is not to be trusted, and after a shortage their memory must go.
            self._models.clear()
        self._send({**names, "outcome": asdict(outcome)})

    def _structures(self, run_id: str, spec: Spec):
        if spec.n_structures == 0:
            return ()
        from fdcore.store import structures
        from fdcore.store.runs import Store

        # A database that restarts is waited for, as the supervisor does.
        until = time.monotonic() + self._config.dead_after_seconds
        while True:
            try:
                return structures.of_run(Store(self._config), run_id)
            except StoreError:
                if time.monotonic() > until or self._stop.is_set():
                    raise
                time.sleep(0.2)

    def _model(self, spec: Spec):
        return None if spec.model is None else self._load(spec.model)

    def _load(self, choice: ModelChoice):
        from fdcore.errors import WeightsError
        from fdcore.models import load_model

        known = self._models.pop(choice, None)
        if known is None:
            while len(self._models) >= KEPT_MODELS:
                self._models.pop(next(iter(self._models)))
            known = load_model(choice.id, choice.device, choice.dtype)
        if choice.weights_sha256 and known.weights_sha256 and choice.weights_sha256 != known.weights_sha256:
            raise WeightsError(
                f"The weights of {choice.id} on this machine are not those the run was submitted with.",
                "Submit the run again; it will use the present ones.",
            )
        self._models[choice] = known
        return known

    def _warm(self) -> None:
        """Load the default model and compile what is compiled on first use; a failure will be told by the first run."""
        try:
            from fdcore.tasks import warm

            warm.first_evaluation(self._load(warm.default_choice()))
        except Exception:
            traceback.print_exc()


def main() -> None:
    # The real stdout belongs to the protocol; whatever a library prints goes to the log.
    outgoing = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    # When memory runs out, the system should take this process, not the app.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800")
    Child(sys.stdin, outgoing, configuration.from_environment()).serve()


if __name__ == "__main__":
    main()
