"""Against a real broker: order, outcomes, filters, consumers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sqlite3
import threading
import time
from collections import defaultdict
from typing import Any
from unittest import mock

from coordinator_client import (
    Again,
    Change,
    ConsumerError,
    InMemory,
    Message,
    Never,
    Settings,
    SettingsError,
    Subscription,
    UnreadableError,
    VersionError,
    WithSqlite,
    changes,
    consumer,
    events,
)
from support import ROOT, STREAM, BrokerCase, event_json


class Order(BrokerCase):
    async def test_an_issue_is_in_order_while_others_go_on(self) -> None:
        client = await self.make_stream()
        handled: dict[int, list[int]] = defaultdict(list)
        at_work: set[int] = set()
        most = 0

        async def handle(change: Change) -> None:
            nonlocal most
            number = change.issue.number
            self.assertNotIn(number, at_work)
            at_work.add(number)
            most = max(most, len(at_work))
            await asyncio.sleep(0.005)
            at_work.remove(number)
            handled[number].append(int(change.issue.title.split()[-1]))

        for count in range(20):
            for number in range(5):
                await self.publish(client, number, count)
        self.start(changes(durable="order", handler=handle))
        await self.until(lambda: sum(map(len, handled.values())) == 100, "all are handled")
        for counts in handled.values():
            self.assertEqual(counts, list(range(20)))
        self.assertEqual(most, 5)
        await self.until_acked(client, "order")

    async def test_a_plain_function_runs_in_a_thread(self) -> None:
        client = await self.make_stream()
        threads: list[threading.Thread] = []

        def handle(change: Change) -> None:
            time.sleep(0.3)
            threads.append(threading.current_thread())

        for number in range(8):
            await self.publish(client, number, 0)
        self.start(changes(durable="threads", handler=handle))
        took = await self.until(lambda: len(threads) == 8, "all are handled")
        self.assertNotIn(threading.main_thread(), threads)
        self.assertLess(took, 8 * 0.3)


class Outcomes(BrokerCase):
    async def test_a_failed_change_is_tried_again_and_its_issue_waits(self) -> None:
        client = await self.make_stream()
        tries: list[tuple[int, int, int]] = []

        async def handle(change: Change) -> None:
            count = int(change.issue.title.split()[-1])
            tries.append((change.issue.number, count, change.message.attempt))
            if (change.issue.number, count) == (1, 0) and change.message.attempt < 3:
                # The second way is any exception.
                if change.message.attempt == 1:
                    raise Again(0.2)
                raise RuntimeError("down")

        for count in range(2):
            for number in (1, 2):
                await self.publish(client, number, count)
        self.start(changes(durable="again", handler=handle, ack_wait=1, first_delay=1.5))
        await self.until(lambda: (1, 1, 1) in tries, "the issue goes on")
        self.assertEqual(
            [each for each in tries if each[0] == 1], [(1, 0, 1), (1, 0, 2), (1, 0, 3), (1, 1, 1)]
        )
        # The other one did not wait.
        self.assertLess(tries.index((2, 1, 1)), tries.index((1, 0, 3)))
        await self.until_acked(client, "again")
        info = await client.jetstream().consumer_info(STREAM, "again")
        # It was kept in hand over the ack wait.
        self.assertEqual(info.delivered.consumer_seq, 4)

    async def test_what_comes_behind_a_failed_change_does_not_hurry_it(self) -> None:
        client = await self.make_stream()
        tries: list[tuple[int, float]] = []

        async def handle(change: Change) -> None:
            tries.append((int(change.issue.title.split()[-1]), time.monotonic()))
            if len(tries) == 1:
                raise Again(0.6)

        await self.publish(client, 1, 0)
        self.start(changes(durable="hurry", handler=handle))
        await self.until(lambda: tries, "it has failed")
        await self.publish(client, 1, 1)
        await self.until(lambda: len(tries) == 3, "both are handled")
        self.assertEqual([count for count, _ in tries], [0, 0, 1])
        self.assertGreaterEqual(tries[1][1] - tries[0][1], 0.6)

    async def test_what_can_never_work_is_ended_with_its_reason(self) -> None:
        client = await self.make_stream()
        told: list[Any] = []

        async def note(message: Any) -> None:
            told.append(json.loads(message.data))

        await client.subscribe("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.>", cb=note)
        calls: list[str] = []

        async def handle(change: Change) -> None:
            calls.append(change.message.id)
            raise Never("no such\r\nproject")

        message_id = await self.publish(client, 1, 0)
        self.start(changes(durable="never", handler=handle))
        await self.until(lambda: told, "the broker tells it")
        self.assertEqual(told[0]["reason"], "no such project")
        self.assertEqual(calls, [message_id])
        await self.until_acked(client, "never")

    async def test_long_work_is_not_given_out_again(self) -> None:
        client = await self.make_stream()
        calls = []

        async def handle(change: Change) -> None:
            calls.append(change.message.id)
            await asyncio.sleep(2.5)

        await self.publish(client, 1, 0)
        self.start(changes(durable="long", handler=handle, ack_wait=1))
        await self.until(lambda: calls, "it is begun")
        await self.until_acked(client, "long")
        info = await client.jetstream().consumer_info(STREAM, "long")
        self.assertEqual((len(calls), info.delivered.consumer_seq), (1, 1))

    async def test_what_cannot_be_read_is_ended_and_nothing_behind_it_waits(self) -> None:
        client = await self.make_stream()
        handled: list[str] = []
        unreadable: list[str] = []

        async def handle(change: Change) -> None:
            handled.append(change.message.id)

        def note(error: UnreadableError, message: Message) -> None:
            unreadable.append(message.id)

        first = await self.publish(client, 1, 0, lambda value: value.pop("issue"))
        second = await self.publish(client, 1, 1)
        self.start(changes(durable="bad", handler=handle, on_unreadable=note))
        await self.until(lambda: handled, "the next one is handled")
        self.assertEqual((handled, unreadable), ([second], [first]))
        await self.until_acked(client, "bad")

    async def test_it_can_stop_at_what_cannot_be_read(self) -> None:
        client = await self.make_stream()

        async def handle(change: Change) -> None:
            pass

        def refuse(error: UnreadableError, message: Message) -> None:
            raise error

        await self.publish(client, 1, 0, lambda value: value.pop("issue"))
        subscriber = self.start(changes(durable="refuses", handler=handle, on_unreadable=refuse))
        [(_, task)] = self.subscribers
        await self.until(task.done, "it ends")
        self.assertIsInstance(task.exception(), UnreadableError)
        del subscriber

    async def test_a_later_version_ends_it_and_is_left_to_who_can_read_it(self) -> None:
        client = await self.make_stream()
        handled: list[int] = []
        unreadable: list[Message] = []

        async def handle(change: Change) -> None:
            handled.append(change.message.sequence)

        def subscription() -> Subscription:
            return changes(
                durable="later",
                handler=handle,
                ack_wait=1,
                on_unreadable=lambda _, message: unreadable.append(message),
            )

        for number in range(1, 5):
            later = {"version": 2} if number == 2 else {}
            await self.publish(client, number, 0, lambda value, later=later: value.update(later))
        self.start(subscription())
        [(_, task)] = self.subscribers
        await self.until(task.done, "it ends")
        self.assertIsInstance(task.exception(), VersionError)
        self.assertIn("version 2", str(task.exception()))
        info = await client.jetstream().consumer_info(STREAM, "later")
        self.assertEqual((info.ack_floor.stream_seq, unreadable), (1, []))
        with mock.patch("coordinator_client.messages.VERSION", 2):
            self.start(subscription())
            await self.until(lambda: len(handled) == 4, "all are handled")
        self.assertEqual(handled, [1, 2, 3, 4])
        await self.until_acked(client, "later")

    async def test_kinds_that_are_not_known(self) -> None:
        client = await self.make_stream()
        kinds: dict[str, list[str]] = {"skips": [], "wants": []}

        def handler(name: str) -> Any:
            async def handle(change: Change) -> None:
                kinds[name].append(change.kind)

            return handle

        await self.publish(client, 1, 0, lambda value: value.update(kind="transferred"))
        await self.publish(client, 1, 2)
        self.start(changes(durable="skips", handler=handler("skips")))
        self.start(changes(durable="wants", handler=handler("wants"), unknown_kinds=True))
        await self.until(lambda: len(kinds["wants"]) == 2 and kinds["skips"], "both have them")
        self.assertEqual(kinds, {"skips": ["closed"], "wants": ["transferred", "closed"]})
        await self.until_acked(client, "skips")

    async def test_the_same_change_published_again_is_not_handled_twice(self) -> None:
        client = await self.make_stream()
        handled: list[int] = []

        async def handle(change: Change) -> None:
            handled.append(change.message.sequence)

        message_id = await self.publish(client, 1, 0)
        remember = InMemory()
        self.start(changes(durable="twice", handler=handle, remember=remember))
        await self.until(lambda: handled, "it is handled")
        await client.jetstream().update_stream(
            name=STREAM, subjects=["gitea.changes.>"], duplicate_window=0.1
        )
        await asyncio.sleep(0.3)
        message = await client.jetstream().get_msg(STREAM, handled[0])
        headers = {"Nats-Msg-Id": message_id}
        await client.jetstream().publish(message.subject, message.data, headers=headers)
        await self.until_acked(client, "twice")
        self.assertEqual(handled, [1])


class Stopping(BrokerCase):
    async def test_what_is_in_hand_is_finished_and_the_rest_given_back(self) -> None:
        client = await self.make_stream()
        begun: list[str] = []
        finished: list[str] = []

        async def handle(change: Change) -> None:
            begun.append(change.message.id)
            await asyncio.sleep(0.3)
            finished.append(change.message.id)

        ids = [await self.publish(client, 1, count) for count in range(4)]
        subscriber = self.start(changes(durable="stop", handler=handle))
        await self.until(lambda: begun, "the first one is begun")
        await self.stop(subscriber)
        self.assertEqual((begun, finished), (ids[:1], ids[:1]))
        again = self.start(changes(durable="stop", handler=handle, concurrency=1))
        # At once, and not after the ack wait of 30 s.
        await self.until(lambda: len(begun) == 2, "the next one is begun", within=3)
        await self.stop(again)
        self.assertEqual(finished, ids[:2])

    async def test_a_thread_that_outlives_the_stop_leaves_its_change_to_the_next_one(self) -> None:
        client = await self.make_stream()
        begun, done = threading.Event(), threading.Event()
        database = self.directory / "state"

        def handle(change: Change) -> None:
            life = 2 if begun.is_set() else 1
            begun.set()
            try:
                # The first life writes until it cannot.
                for _ in range(1 if life == 2 else 1_000_000):
                    change.message.transaction.execute("INSERT INTO effects VALUES (?)", (life,))
            finally:
                done.set()

        def effects() -> list[tuple[int]]:
            with contextlib.closing(sqlite3.connect(database)) as reader:
                return reader.execute("SELECT * FROM effects").fetchall()

        def subscription() -> Subscription:
            remember = WithSqlite(database)
            return changes(durable="thread", handler=handle, remember=remember, drain_timeout=0.1)

        with contextlib.closing(sqlite3.connect(database)) as setup:
            setup.execute("CREATE TABLE effects (of INTEGER)")
        await self.publish(client, 1, 0)
        subscriber = self.start(subscription())
        await self.until(begun.is_set, "it is begun")
        await self.stop(subscriber)
        await self.until(done.is_set, "the thread has ended")
        self.assertEqual(effects(), [])
        self.start(subscription())
        await self.until_acked(client, "thread")
        self.assertEqual(effects(), [(2,)])

    async def test_a_handler_that_does_not_end_is_cancelled_and_its_change_given_back(self) -> None:
        client = await self.make_stream()
        begun: list[int] = []

        async def handle(change: Change) -> None:
            begun.append(change.message.attempt)
            if len(begun) == 1:
                await asyncio.sleep(60)

        await self.publish(client, 1, 0)
        subscriber = self.start(changes(durable="slow", handler=handle, drain_timeout=0.2))
        await self.until(lambda: begun, "it is begun")
        await self.stop(subscriber)
        self.start(changes(durable="slow", handler=handle))
        await self.until(lambda: len(begun) == 2, "it is handled again", within=3)
        await self.until_acked(client, "slow")


class Consumers(BrokerCase):
    async def test_filters_are_the_brokers_and_a_wider_one_is_taken_over(self) -> None:
        client = await self.make_stream()
        handled: list[str] = []

        async def handle(change: Change) -> None:
            handled.append(change.kind)

        first = self.start(changes(durable="filter", handler=handle, kind="closed"))
        await self.until(first.consuming.is_set, "it consumes")
        # What comes after the last one that it got, a wider filter brings in as well.
        for count in range(3):
            await self.publish(client, 1, count)
        await self.until(lambda: handled == ["closed"], "the wanted one is handled")
        await self.stop(first)
        info = await client.jetstream().consumer_info(STREAM, "filter")
        self.assertEqual(info.config.filter_subject or info.config.filter_subjects[0],
                         "gitea.changes.closed.>")  # fmt: skip
        wider = changes(durable="filter", handler=handle, kind=["closed", "reopened"])
        second = self.start(wider)
        await self.until(second.consuming.is_set, "it consumes")
        handled.clear()
        for count in range(4, 8):
            await self.publish(client, 1, count)
        await self.until(lambda: handled == ["closed", "reopened"], "both are handled")
        await self.stop(second)
        # A consumer that delivers more than is wanted serves as well.
        handled.clear()
        self.start(changes(durable="filter", handler=handle, kind="reopened"))
        for count in range(8, 12):
            await self.publish(client, 1, count)
        await self.until(lambda: handled == ["reopened"], "only the wanted one is handled")
        await self.until_acked(client, "filter")

    async def test_a_consumer_that_cannot_serve_is_refused(self) -> None:
        client = await self.make_stream()
        js = client.jetstream()
        for config, why in (
            ({"ack_policy": "none"}, "wants no ack"),
            ({"ack_policy": "explicit", "max_deliver": 3}, "gives messages up"),
            ({"ack_policy": "explicit", "headers_only": True}, "leaves the payloads out"),
        ):
            await js.add_consumer(STREAM, durable_name=f"unfit-{len(self.subscribers)}", **config)
            durable = f"unfit-{len(self.subscribers)}"
            self.start(changes(durable=durable, handler=lambda change: None))
            task = self.subscribers[-1][1]
            await self.until(task.done, "it ends")
            self.assertIsInstance(task.exception(), ConsumerError)
            self.assertIn(why, str(task.exception()))

    async def test_a_new_consumer_begins_where_it_is_told(self) -> None:
        client = await self.make_stream()
        handled: dict[str, list[int]] = defaultdict(list)

        def handler(name: str) -> Any:
            async def handle(change: Change) -> None:
                handled[name].append(change.message.sequence)

            return handle

        for count in range(3):
            await self.publish(client, 1, count)
        starts: dict[str, Any] = {"all": "all", "new": "new", "at": 3}
        for name, begin in starts.items():
            subscriber = self.start(changes(durable=name, handler=handler(name), start=begin))
            await self.until(subscriber.consuming.is_set, "it consumes")
        await self.publish(client, 1, 3)
        expected = {"all": [1, 2, 3, 4], "new": [4], "at": [3, 4]}
        await self.until(lambda: handled == expected, f"{expected}")

    async def test_a_consumer_that_is_deleted_is_made_anew_where_it_was(self) -> None:
        client = await self.make_stream()
        handled: list[int] = []

        async def handle(change: Change) -> None:
            handled.append(change.message.sequence)

        self.start(changes(durable="gone", handler=handle))
        for count in range(5):
            await self.publish(client, 1, count)
        await self.until(lambda: len(handled) == 5, "all are handled")
        await self.until_acked(client, "gone")
        await client.jetstream().delete_consumer(STREAM, "gone")
        for count in range(5, 10):
            await self.publish(client, 1, count)
        took = await self.until(lambda: len(handled) == 10, "the others are handled")
        self.assertEqual(handled, list(range(1, 11)))
        self.assertLess(took, 2)
        info = await client.jetstream().consumer_info(STREAM, "gone")
        self.assertEqual(info.delivered.consumer_seq, 5)

    async def test_a_stream_that_is_made_anew_is_read_from_its_beginning(self) -> None:
        client = await self.make_stream()
        handled: list[str] = []
        go_on = asyncio.Event()
        begun = asyncio.Event()

        async def handle(change: Change) -> None:
            if change.message.sequence == 3 and not go_on.is_set():
                begun.set()
                await go_on.wait()
            handled.append(change.message.id)

        subscriber = self.start(changes(durable="anew", handler=handle))
        ids = [await self.publish(client, 1, count) for count in range(3)]
        await begun.wait()
        await client.jetstream().delete_stream(STREAM)
        await self.until(lambda: not subscriber.consuming.is_set(), "it is noticed")
        await self.make_stream()
        ids += [await self.publish(client, 1, count) for count in range(3, 7)]
        # The ack of the third one of the old stream must not settle the third one of the new.
        await self.until(lambda: len(handled) >= 4, "the new ones are begun")
        go_on.set()
        await self.until(lambda: len(handled) == 7, "all are handled")
        self.assertEqual(sorted(handled), sorted(ids))
        await self.until_acked(client, "anew")

    async def test_a_new_stream_is_read_from_its_beginning_though_a_question_has_no_answer(
        self,
    ) -> None:
        client = await self.make_stream()
        handled: list[str] = []
        unanswered: list[str] = []
        ask = consumer._ask

        async def lose_one(client: Any, subject: str, *rest: Any) -> Any:
            if subject.startswith("STREAM.INFO") and not unanswered:
                unanswered.append(subject)
                subject = "NOBODY.IS.HERE"
            return await ask(client, subject, *rest)

        async def handle(change: Change) -> None:
            handled.append(change.message.id)

        subscriber = self.start(changes(durable="unanswered", handler=handle))
        ids = [await self.publish(client, 1, count) for count in range(5)]
        await self.until(lambda: handled == ids, "those of the first stream are handled")
        await self.until_acked(client, "unanswered")
        with mock.patch("coordinator_client.consumer._ask", lose_one):
            await client.jetstream().delete_stream(STREAM)
            await self.until(lambda: not subscriber.consuming.is_set(), "it is noticed")
            await self.make_stream()
            ids += [await self.publish(client, 1, count) for count in range(5, 8)]
            await self.until(subscriber.consuming.is_set, "it consumes again")
        self.assertEqual(len(unanswered), 1)
        await self.until(lambda: handled == ids, "those of the second stream are handled")

    async def test_events_are_read_as_changes_are(self) -> None:
        client = await self.admin()
        js = client.jetstream()
        await js.add_stream(name="GITEA_ISSUES", subjects=["gitea.issues.>"])
        handled: list[Any] = []

        async def handle(event: Any) -> None:
            handled.append((event.action, event.issue.ref))

        self.start(events(durable="events", handler=handle, action="assigned", login="bot"))
        for action in ("edited", "assigned"):
            payload = json.dumps(event_json(action=action)).encode()
            await js.publish(f"gitea.issues.{action}.acme.repo%2E1.7.3", payload)
        await self.until(lambda: handled, "it is handled")
        self.assertEqual(handled, [("assigned", "acme/repo.1#7")])


class Walls(BrokerCase):
    """With the users of deploy/nats/users.conf."""

    config = (ROOT / "deploy" / "nats" / "users.conf").read_text("utf-8")

    async def asyncSetUp(self) -> None:
        passwords = {f"{user}_PASSWORD": "hush" for user in re.findall(r"\$(\w+)_P", self.config)}
        environment = mock.patch.dict(os.environ, passwords)
        environment.start()
        self.addCleanup(environment.stop)
        await super().asyncSetUp()

    def login(self) -> dict[str, Any]:
        return {"user": "admin", "password": "hush"}

    async def test_a_reader_needs_nothing_but_its_consumer(self) -> None:
        client = await self.make_stream()
        handled: list[int] = []

        async def handle(change: Change) -> None:
            handled.append(change.message.sequence)
            if len(handled) == 1:
                raise Again(0.1)

        password = self.directory / "password"
        password.write_text("hush\n")
        settings = Settings(url=self.broker.url, user="reader", password_file=password)
        await client.jetstream().add_consumer(STREAM, durable_name="reader", ack_policy="explicit")
        self.start(changes(durable="reader", handler=handle), settings)
        for count in range(3):
            await self.publish(client, 1, count)
        await self.until(lambda: handled == [1, 1, 2, 3], "all are handled")
        await self.until_acked(client, "reader")

    async def test_a_consumer_that_may_not_be_created_is_waited_for(self) -> None:
        client = await self.make_stream()
        handled: list[int] = []

        async def handle(change: Change) -> None:
            handled.append(change.message.sequence)

        settings = Settings(url=self.broker.url, user="reader", password="hush")
        with self.assertLogs("coordinator_client", "WARNING") as logs:
            self.start(changes(durable="reader", handler=handle), settings)
            said = "create-streams --reader reader"
            await self.until(lambda: any(said in line for line in logs.output), "the remedy", 8)
        self.assertNotIn("hush", "".join(logs.output))
        await client.jetstream().add_consumer(STREAM, durable_name="reader", ack_policy="explicit")
        await self.publish(client, 1, 0)
        await self.until(lambda: handled, "it is handled")

    async def test_a_wrong_password_is_told_and_tried_again(self) -> None:
        settings = Settings(url=self.broker.url, user="reader", password="wrong-hush")
        with self.assertLogs("coordinator_client", "WARNING") as logs:
            self.start(changes(durable="reader", handler=lambda change: None), settings)
            said = "Authorization Violation"
            await self.until(lambda: any(said in line for line in logs.output), said)
        self.assertNotIn("hush", "".join(logs.output))

    async def test_nothing_is_said_without_tls_where_tls_is_wanted(self) -> None:
        heard: list[bytes] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            info = {"server_id": "x", "version": "2.15.1", "headers": True, "max_payload": 1024}
            writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
            heard.append(await reader.read(1000))
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        settings = Settings(url=f"tls://127.0.0.1:{port}", user="u", password="hush")
        with self.assertLogs("coordinator_client", "WARNING") as logs:
            self.start(changes(durable="tls", handler=lambda change: None), settings)
            await self.until(lambda: len(heard) > 1, "it has tried")
        self.assertIn("the server offers no TLS", "".join(logs.output))
        self.assertEqual(set(heard), {b""})
        server.close()

    async def test_a_password_that_cannot_be_read_ends_it(self) -> None:
        settings = Settings(url=self.broker.url, user="reader", password_file="/none")
        self.start(changes(durable="reader", handler=lambda change: None), settings)
        [(_, task)] = self.subscribers
        await self.until(task.done, "it ends")
        self.assertIsInstance(task.exception(), SettingsError)
