"""Definitions, the registry, idempotency keys, durations, packets."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from everturn.errors import ConfigurationError, InvalidRequest
from everturn.rules import durations
from everturn.tasks import codec, idempotency, triggers
from everturn.tasks import registry as registries
from everturn.tasks.definition import Queue, task
from everturn.tasks.registry import Registry
from everturn.tasks.retries import RetryPolicy


@pytest.fixture(autouse=True)
def registry() -> Any:
    with registries.collecting(Registry()) as collected:
        yield collected


def test_two_tasks_with_one_id_fail_naming_the_id_and_both_files(registry: Registry) -> None:
    """Conformance 1."""

    @task(id="same")
    async def one(payload: Any) -> None: ...

    with pytest.raises(ConfigurationError) as caught:
        registry.register(one, place="other.py:3")

    assert "'same'" in str(caught.value)
    assert "test_tasks_definitions.py" in str(caught.value)
    assert "other.py:3" in str(caught.value)


def test_a_declaration_carries_what_the_server_needs() -> None:
    """Conformance 6: a partial policy keeps the other defaults."""

    @task(
        id="t",
        queue=Queue("mail", concurrency_limit=2),
        retry=RetryPolicy(max_attempts=5),
        max_duration="1m",
    )
    async def t(payload: Any) -> None:
        """Sends mail."""

    declared = t.declaration()

    assert (declared.queue, declared.queue_limit) == ("mail", 2)
    assert declared.config["retry"] == {
        "maxAttempts": 5,
        "factor": 2.0,
        "minTimeoutInMs": 1000,
        "maxTimeoutInMs": 60000,
        "randomize": True,
    }
    assert declared.config["maxDuration"] == 60
    assert declared.config["description"] == "Sends mail."


def test_a_queue_declared_twice_keeps_its_first_limit(registry: Registry) -> None:
    """Conformance 5."""
    Queue("q", concurrency_limit=1)
    Queue("q", concurrency_limit=9)

    assert registry.queues == {"q": 1}


def test_idempotency_digests_match_the_vectors() -> None:
    """Wire-protocol §23."""
    assert (
        idempotency.create("k1")
        == "6ab9f1eb8f7d3388f4f9d586f66e99fd54080df2c446f0e58668b09c08a16dd0"
    )
    assert (
        idempotency.create(["a", "b"])
        == "d44362d67d921091c7b9674d752e9e23c1f9ec8a4f0b82741bf01364eb97c830"
    )


def test_a_key_of_64_characters_travels_unchanged() -> None:
    assert idempotency.options("x" * 64, "1h") == {
        "idempotencyKey": "x" * 64,
        "idempotencyKeyOptions": {"key": "x" * 64, "scope": "global"},
        "idempotencyKeyTTL": "1h",
    }


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (1.5, 1.5),
        (timedelta(minutes=2), 120),
        ("30s", 30),
        ("1h30m", 5400),
        ("2w", 1_209_600),
        ("1hr", 3600),
    ],
)
def test_durations_are_read_in_every_form(written: Any, seconds: float) -> None:
    assert durations.parse(written) == seconds


@pytest.mark.parametrize("written", ["", "5", "1x", "-1s", -1, float("nan"), True, "1.5h", None])
def test_what_is_no_duration_is_refused(written: Any) -> None:
    with pytest.raises(InvalidRequest):
        durations.parse(written)


def test_a_wait_names_exactly_one_unit() -> None:
    assert durations.of_units(months=1) == 30 * 86_400
    with pytest.raises(InvalidRequest):
        durations.of_units(seconds=1, minutes=1)
    assert durations.idempotency_ttl("2d") == 172_800
    assert durations.idempotency_ttl("1h30m") is None


def test_rich_packets_come_back_as_python_has_them() -> None:
    """Wire-protocol §9.2."""
    packet = (
        b'{"json":{"a":1,"d":"2026-04-24T09:00:00.000Z","n":["12"]},'
        b'"meta":{"values":{"d":["Date"],"n.0":["bigint"]}}}'
    )
    assert codec.decode_packet(packet, codec.SUPER_JSON) == {
        "a": 1,
        "d": datetime(2026, 4, 24, 9, tzinfo=UTC),
        "n": [12],
    }
    assert codec.decode_packet(b"hi", codec.TEXT) == "hi"
    with pytest.raises(InvalidRequest):
        codec.decode_packet(b"packets/1", "application/store")


def test_trigger_options_become_wire_members() -> None:
    wire = triggers.wire_options(
        {"queue": "q", "tags": [" a ", "a"], "delay": "1m", "max_duration": 1, "version": "v"}
    )
    assert wire == {
        "queue": {"name": "q"},
        "tags": ["a"],
        "delay": "60s",
        "maxDuration": 5,
        "lockToVersion": "v",
    }
    with pytest.raises(InvalidRequest, match="unknown"):
        triggers.wire_options({"bogus": 1})  # type: ignore[typeddict-unknown-key]
