# SPDX-License-Identifier: Apache-2.0
"""One eviction as it is written down: what was predicted, what came, and when."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final, Self

from nova_enlightened.remediation.eviction_states import FINAL, Input, State, advance

RECORD_VERSION: Final = 1
REASON_LENGTH: Final = 500


@dataclasses.dataclass(frozen=True)
class EvictionRecord:
    """An eviction; times are seconds since the epoch.

    Keys of `times`, as things happen: detected, decided, ordered, requested, accepted (or
    unanswered), appeared, post_copy, completed, relieved, ended.

    :param eviction: its id.
    :param cause: identifies what it is for.
    :param host: the source's compute service.
    :param revision: one more with every change; of two copies the higher one holds.
    :param why: the figures that led to it; `reason`: why it goes on, or ended, as it did.
    :param urgent: whether the source's agent has the order; None before it was asked.
    :param resource: what the host was short of, a ``contention.victims.Resource``.
    :param expected: a host that could take it when it was decided.
    :param vcpus, memory, cpu: what arrives with it; KiB and CPUs wanted.
    :param predicted_relief: CPUs that waited and should not any more, or KiB to be freed.
    :param predicted_cost: seconds the server was expected to be slowed down.
    :param before: what the host lacked when it was decided: CPUs that waited, or KiB it had.
    :param measured_relief: as `predicted_relief`; None where no report told.
    :param measured_cost: seconds from the request to the completed migration.
    :param migration: Nova's id of the migration, `after_migration` the highest id that a
        migration of this server had before: what is higher may be ours.
    :param adopted: found under way in Nova rather than decided here.
    """

    eviction: str
    cause: str
    host: str
    instance: str
    state: State = State.DECIDED
    revision: int = 0
    why: str = ""
    reason: str = ""
    urgent: bool | None = None
    resource: str = "cpu"
    expected: str = ""
    vcpus: int = 0
    memory: int = 0
    cpu: float = 0.0
    predicted_relief: float = 0.0
    predicted_cost: float = 0.0
    before: float = 0.0
    measured_relief: float | None = None
    measured_cost: float | None = None
    destination: str = ""
    migration: int | None = None
    after_migration: int = 0
    adopted: bool = False
    times: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether nothing more will be done for it."""
        return self.state in FINAL

    @property
    def last_change(self) -> float:
        """When something last happened to it."""
        return max(self.times.values(), default=0.0)

    def at(self, milestone: str) -> float | None:
        """When a milestone was passed, None if it was not."""
        return self.times.get(milestone)

    def after(
        self, happened: Input, now: float, reason: str = "", **changes: Any
    ) -> "EvictionRecord":
        """The record once something has happened; nothing happens to one that has ended."""
        if self.ended:
            return self
        state = advance(self.state, happened)
        if state is State.GAVE_UP and happened is not Input.TIMED_OUT:
            reason = f"{happened} while {self.state} is not foreseen; {reason}"
        times = dict(self.times)
        for milestone in _passed(happened, state):
            times.setdefault(milestone, now)
        return dataclasses.replace(
            self,
            state=state,
            revision=self.revision + 1,
            reason=(reason or self.reason)[:REASON_LENGTH],
            times=times,
            **changes,
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {"version": RECORD_VERSION, **dataclasses.asdict(self), "state": str(self.state)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """A record from the journal or the bus; keys that a newer writer adds are left out.

        :raises ValueError: not a record, or one of a version that cannot be read.
        """
        try:
            if values["version"] != RECORD_VERSION:
                raise ValueError(f"version {values['version']!r}, not {RECORD_VERSION}")
            names = {field.name for field in dataclasses.fields(cls)}
            known = {key: value for key, value in values.items() if key in names}
            known["state"] = State(known["state"])
            known["times"] = {str(k): float(v) for k, v in known["times"].items()}
            record = cls(**known)
        except (TypeError, KeyError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(f"not an eviction's record: {error!r}") from error
        texts = (record.eviction, record.host, record.instance, record.cause, record.why)
        if not all(isinstance(text, str) for text in texts) or type(record.revision) is not int:
            raise ValueError("not an eviction's record: a value of the wrong kind")
        return record


def _passed(happened: Input, state: State) -> list[str]:
    """Milestones passed with this input."""
    milestone = {
        Input.ORDER_TAKEN: "ordered",
        Input.ORDER_MISSED: "ordered",
        Input.CHECKED: "requested",
        Input.ACCEPTED: "accepted",
        Input.UNANSWERED: "unanswered",
        Input.APPEARED: "appeared",
        Input.POST_COPY_SEEN: "post_copy",
        Input.COMPLETED: "completed",
        Input.RELIEVED: "relieved",
    }.get(happened)
    passed = [milestone] if milestone is not None else []
    return [*passed, "ended"] if state in FINAL else passed
