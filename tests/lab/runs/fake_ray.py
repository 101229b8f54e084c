"""What `on_ray.py` asks of the library `ray`, its tasks being threads of this process: two at a time, the others wait.

A test sets `full` to keep tasks in the queue, and `lose` to have the worker of every task die once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType, SimpleNamespace
from typing import Any


class RayError(Exception):
    pass


class TaskCancelledError(RayError):
    pass


class WorkerCrashedError(RayError):
    pass


class Task:
    """A reference to a task's result."""

    def __init__(self, ray: FakeRay, function: Callable[..., int], arguments: tuple[Any, ...]) -> None:
        self.training = arguments[0]
        self.cancelled = False
        self.future: Future[int] = ray.pool.submit(self._run, ray, function, arguments)

    def _run(self, ray: FakeRay, function: Callable[..., int], arguments: tuple[Any, ...]) -> int:
        while ray.full and not self.cancelled:
            ray.looked.wait(0.01)
        if self.cancelled:
            raise TaskCancelledError
        if ray.lost:
            raise WorkerCrashedError("the worker died\nand more lines")
        return function(*arguments)


class FakeRay(ModuleType):
    """Two CPUs of one node.

    Attributes:
        options: of every task that was submitted.
        address: that was joined.
    """

    def __init__(self) -> None:
        super().__init__("ray")
        self.pool, self.looked = ThreadPoolExecutor(2), threading.Event()
        self.full = self.lost = False
        self.options: list[dict[str, Any]] = []
        self.address: str | None = None
        self.exceptions = SimpleNamespace(RayError=RayError)

    def is_initialized(self) -> bool:
        return self.address is not None

    def init(self, address: str, **_: Any) -> None:
        if address == "auto":
            raise ConnectionError("Could not find any running Ray instance.")
        self.address = address

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 2.0}}]

    def remote(self, **options: Any) -> Callable[..., Any]:
        if "colour" in options:
            raise ValueError("Invalid option keyword colour for remote functions.")

        def of(function: Callable[..., int], more: dict[str, Any] = {}) -> Any:  # noqa: B006
            def submit(*arguments: Any) -> Task:
                self.options.append(options | more)
                return Task(self, function, arguments)

            return SimpleNamespace(remote=submit, options=lambda **more: of(function, more))

        return of

    def wait(self, references: list[Task], timeout: float) -> tuple[list[Task], list[Task]]:
        ready = [one for one in references if one.future.done()]
        return ready, [one for one in references if one not in ready]

    def get(self, reference: Task) -> int:
        return reference.future.result()

    def cancel(self, reference: Task, force: bool) -> None:
        assert force, "only a forced end reaches what a worker waits for"
        reference.cancelled = True
        if reference.training.process is not None:
            reference.training.process.kill()
