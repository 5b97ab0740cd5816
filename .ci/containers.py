"""What .ci/containers does to running containers: senders, readers, and the check of what came of it.

On the host, with nothing but Python:
  deliver BODY URL            one recorded delivery; prints its id
  load REPOSITORY URL OUT     deliveries until SIGTERM; OUT gets what was answered 200
In a container beside the broker, with nats-py:
  change ID                   a delivery's change, as reader
  share WORKERS SERVICE       every worker has handled something
  replicas N                  all that lives on the broker is kept N times
  reaches HOST PORT           exit code 0 if it accepts a connection
  requires_tls HOST           the broker there takes no client without TLS
  targets JOB=N...            Prometheus scrapes N of each job, and has the rules
  check OUT... [--any-order]  all that was answered 200 has arrived, once and in order
"""
import asyncio
import collections
import datetime
import hashlib
import hmac
import http.client
import json
import pathlib
import signal
import socket
import ssl
import sys
import threading
import time
import urllib.parse
import urllib.request
import uuid
import zlib

SECRET = b"s3cr3t"  # of the recordings' hooks
SENDERS = 4
PAUSE = 0.03  # between one sender's deliveries: enough load, and room for other work on two cores
PATIENCE = 180  # seconds until what was answered 200 has to be there
STEPS = [
    ("assigned", ["bot"], "open"),
    ("assigned", ["bot", "tom"], "open"),
    ("unassigned", ["tom"], "open"),
    ("closed", ["tom"], "closed"),
    ("reopened", ["tom"], "open"),
    ("unassigned", [], "open"),
]


# --- senders


def post(url, headers, body):
    at = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(at.hostname, at.port, timeout=5)  # Gitea's patience
    try:
        connection.request("POST", "/webhook/gitea", body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def signed(delivery_id, body, event_type):
    signature = hmac.new(SECRET, body, hashlib.sha256).hexdigest()
    return {
        "Content-Type": "application/json",
        "X-Gitea-Delivery": delivery_id,
        "X-Gitea-Event": "issues",
        "X-Gitea-Event-Type": event_type,
        "X-Gitea-Signature": signature,
        "X-Hub-Signature-256": f"sha256={signature}",
    }


def deliver(path, url):
    body = pathlib.Path(path).read_bytes()
    delivery_id = str(uuid.uuid4())
    status, text = post(url, signed(delivery_id, body, "issue_assign"), body)
    assert status == 200 and json.loads(text)["status"] == "accepted", (status, text)
    status, text = post(url, signed(delivery_id, body, "issue_assign") | {"X-Gitea-Signature": "0" * 64}, body)
    assert status == 401, (status, text)
    print(delivery_id)


def payload(repository, number, step):
    action, assignees, state = STEPS[(step - 1) % len(STEPS)] if step else ("opened", [], "open")
    user = lambda n, login: {"id": n, "login": login}
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(1_793_000_000 + step))
    name = f"r{repository}"
    return {
        "action": action,
        "number": number,
        "issue": {
            "id": repository * 1_000_000 + number,
            "html_url": f"http://localhost:3000/acme/{name}/issues/{number}",
            "number": number,
            "user": user(1, "maria"),
            "title": "Login page returns 500",
            "body": "Steps: open `/login`. " * 200,
            "labels": [],
            "assignees": [user(zlib.crc32(login.encode()), login) for login in assignees] or None,
            "state": state,
            "created_at": "2026-10-01T00:00:00Z",
            "updated_at": stamp,
        },
        "repository": {
            "id": repository,
            "owner": user(5, "acme"),
            "name": name,
            "full_name": f"acme/{name}",
            "html_url": f"http://localhost:3000/acme/{name}",
            "clone_url": f"http://localhost:3000/acme/{name}.git",
            "default_branch": "main",
        },
        "sender": user(1, "maria"),
    }


def load(repository, url, out):
    """Each sender has issues of its own and one delivery under way, so the order of an issue's is certain."""
    stop, lock, slowest, failures = threading.Event(), threading.Lock(), [0.0], []
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    accepted = open(out, "w")

    def send(sender):
        step = 0
        while not stop.is_set():
            for number in range(sender + 1, 40, SENDERS):
                what, delivery_id = payload(int(repository), number, step), str(uuid.uuid4())
                event_type = "issue_assign" if "assigned" in what["action"] else "issues"
                body, began = json.dumps(what).encode(), time.monotonic()
                try:
                    answer = post(url, signed(delivery_id, body, event_type), body)
                except OSError as error:
                    answer = (0, repr(error))
                with lock:
                    slowest[0] = max(slowest[0], time.monotonic() - began)
                    if answer[0] != 200:
                        failures.append(answer)
                        return stop.set()
                    line = {"id": delivery_id, "says": says(what["action"], what["issue"])}
                    print(json.dumps(line), file=accepted, flush=True)
                if stop.wait(PAUSE):
                    return
            step += 1

    senders = [threading.Thread(target=send, args=(sender,)) for sender in range(SENDERS)]
    [thread.start() for thread in senders]
    [thread.join() for thread in senders]
    if failures:
        sys.exit(f"not answered 200: {failures[0]}")
    print(f"{sum(1 for _ in open(out))} deliveries, each answered 200, the slowest in {slowest[0]:.2f} s")


def says(action, issue):
    logins = [user["login"] for user in issue["assignees"] or []]
    return [action, issue["state"], logins]


# --- readers


async def connect(role):
    import nats

    password = pathlib.Path(f"/passwords/{role}/password").read_text()
    servers = [f"nats://{name}:4222" for name in ("nats", "nats-b", "nats-c") if resolves(name)]
    ca = pathlib.Path("/tls/ca.pem")
    tls = ssl.create_default_context(cafile=ca) if ca.exists() else None
    client = await nats.connect(servers, max_reconnect_attempts=-1, user=role, password=password, tls=tls)
    return client, client.jetstream(timeout=10)


def resolves(name):
    try:
        return bool(socket.gethostbyname(name))
    except OSError:
        return False


async def change(delivery_id):
    """The change of a delivery, read as an agent would: as the user reader, who may do nothing else."""
    client, js = await connect("reader")
    agent = await js.pull_subscribe_bind("reader", "GITEA_CHANGES")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            [message] = await agent.fetch(1, timeout=5)
        except asyncio.TimeoutError:
            continue
        told = json.loads(message.data)
        await message.ack()
        if told["cause"]["delivery_id"] == delivery_id:
            assert (told["kind"], told["added"]) == ("assigned", ["bot"]), told
            return print(f"the change of {delivery_id} is at the reader: {told['kind']} +{told['added'][0]}")
    sys.exit(f"no change of {delivery_id}")


def metrics(address):
    with urllib.request.urlopen(f"http://{address}:8001/metrics", timeout=5) as answer:
        return answer.read().decode()


def share(workers, service):
    addresses = sorted({info[4][0] for info in socket.getaddrinfo(service, 8001, socket.AF_INET)})
    handled = []
    for address in addresses:
        lines = metrics(address).splitlines()
        handled.append(sum(float(l.rsplit(" ", 1)[1]) for l in lines if l.startswith("coordinator_events_total{")))
    print(f"events handled by each worker: {handled}")
    assert len(handled) == int(workers) and all(handled), handled


async def replicas(count):
    _, js = await connect("admin")
    for stream in await js.streams_info():
        assert stream.config.num_replicas == count, stream
        kept = 1 + len([peer for peer in stream.cluster.replicas or [] if not peer.offline])
        assert kept == count, stream.cluster
    print(f"streams and bucket are kept {count} times")


def reaches(host, port):
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        sys.exit(f"{host}:{port}: {error}")


def requires_tls(host):
    """A server says so in its first line."""
    with socket.create_connection((host, 4222), timeout=5) as connection:
        info = json.loads(connection.makefile().readline().removeprefix("INFO "))
    assert info.get("tls_required") and not info.get("connect_urls"), info
    print(f"{host} requires TLS")


def prometheus(path):
    with urllib.request.urlopen(f"http://prometheus:9090/api/v1/{path}", timeout=5) as answer:
        return json.load(answer)["data"]


def targets(*wanted):
    deadline, wanted = time.monotonic() + 90, sorted(wanted)
    while True:
        try:
            up = [target["labels"]["job"] for target in prometheus("targets")["activeTargets"] if target["health"] == "up"]
            found = sorted(f"{job}={count}" for job, count in collections.Counter(up).items())
        except OSError as error:
            found = error
        if found == wanted:
            break
        assert time.monotonic() < deadline, found
        time.sleep(1)
    rules = [rule for group in prometheus("rules")["groups"] for rule in group["rules"]]
    unwell = [rule["name"] for rule in rules if rule["health"] == "err"]
    assert rules and not unwell, unwell
    print(f"Prometheus scrapes {', '.join(wanted)} and evaluates {len(rules)} rules")


# --- the check


async def messages(js, stream):
    """All messages of a stream, from its first to its last."""
    from nats.js.api import AckPolicy, ConsumerConfig

    count = (await js.stream_info(stream)).state.messages
    config = ConsumerConfig(ack_policy=AckPolicy.NONE, inactive_threshold=60)
    reader = await js.pull_subscribe(">", stream=stream, config=config)
    found = []
    while len(found) < count:
        found += [json.loads(message.data) for message in await reader.fetch(min(500, count - len(found)), timeout=20)]
    return found


async def settled(js):
    """Whether no worker has anything left to do."""
    for partition in range(64):
        consumer = await js.consumer_info("GITEA_ISSUES", f"worker-{partition:02}")
        if consumer.num_pending or consumer.num_ack_pending:
            return False
    return True


async def check(files, any_order):
    import nats.errors

    accepted = [json.loads(line) for file in files for line in open(file)]
    _, js = await connect("admin")
    began, missing, trouble = time.monotonic(), {delivery["id"] for delivery in accepted}, None
    while True:
        try:
            events = await messages(js, "GITEA_ISSUES")
            missing -= {event["delivery"]["id"] for event in events}
            if not missing and await settled(js):
                changes = await messages(js, "GITEA_CHANGES")
                break
        except (nats.errors.Error, asyncio.TimeoutError) as error:
            trouble = error  # a leader that is being elected, say
        if time.monotonic() - began > PATIENCE:
            sys.exit(f"{len(missing)} deliveries that were answered 200 are missing, or not all handled ({trouble!r})")
        await asyncio.sleep(2)
    wrong = wrong_events(accepted, events, any_order) + wrong_changes(events, changes)
    dead = (await js.stream_info("GITEA_ISSUES_DEAD")).state.messages
    if dead:
        wrong.append(f"{dead} dead letters")
    if wrong:
        sys.exit(f"{len(wrong)} wrong:\n  " + "\n  ".join(wrong[:10]))
    print(f"{len(accepted)} deliveries of these, {len(events)} events and {len(changes)} changes in all: "
          f"nothing lost, nothing twice, {'consistent' if any_order else 'in order'}")


def key(told):
    return told["repository"]["id"], told["issue"]["number"]


def at(text):
    return datetime.datetime.fromisoformat(text)


def age(event):
    return at(event["issue"]["updated_at"]), at(event["delivery"]["received_at"])


def wrong_events(accepted, events, any_order):
    by_id = {event["delivery"]["id"]: event for event in events}
    wrong = [f"{len(events) - len(by_id)} events twice"] if len(by_id) < len(events) else []
    for delivery in accepted:
        event = by_id[delivery["id"]]
        if says(event["action"], event["issue"]) != delivery["says"]:
            wrong.append(f"event {delivery['id']} says something else")
    newest = {}
    for event in events:
        if not any_order and age(event) < newest.get(key(event), age(event)):
            wrong.append(f"event {event['delivery']['id']} stands behind a newer one")
        newest[key(event)] = max(age(event), newest.get(key(event), age(event)))
    return wrong


def wrong_changes(events, changes):
    """The changes of an issue add up to its newest event, each once and none against what was before."""
    wrong, seen, last = [], set(), {}
    folded = collections.defaultdict(lambda: (set(), "open"))
    for change in changes:
        cause, name = change["cause"], f"change {change['kind']} of {change['cause']['delivery_id']}"
        if (cause["delivery_id"], change["kind"]) in seen:
            wrong.append(f"{name} is there twice")
        seen.add((cause["delivery_id"], change["kind"]))
        received_at = at(cause["received_at"])
        if received_at < last.get(key(change), received_at):
            wrong.append(f"{name} goes back in time")
        last[key(change)] = received_at
        assignees, state = folded[key(change)]
        if assignees & set(change["added"]) or not assignees >= set(change["removed"]):
            wrong.append(f"{name} of {key(change)} adds who is there or removes who is not")
        assignees = (assignees | set(change["added"])) - set(change["removed"])
        after = {"closed": "closed", "reopened": "open"}.get(change["kind"])
        if after and after == state and not change["first_seen"]:
            wrong.append(f"{name} changes nothing")
        folded[key(change)] = assignees, after or state
    newest = {}
    for event in events:
        if key(event) not in newest or age(event) >= age(newest[key(event)]):
            newest[key(event)] = event
    for issue, event in newest.items():
        end = {user["login"] for user in event["issue"]["assignees"]}, event["issue"]["state"]
        if folded[issue] != end:
            wrong.append(f"issue {issue} ends as {folded[issue]} instead of {end}")
    return wrong


match sys.argv[1:]:
    case ["deliver", path, url]:
        deliver(path, url)
    case ["load", repository, url, out]:
        load(repository, url, out)
    case ["change", delivery_id]:
        asyncio.run(change(delivery_id))
    case ["share", workers, service]:
        share(workers, service)
    case ["replicas", count]:
        asyncio.run(replicas(int(count)))
    case ["reaches", host, port]:
        reaches(host, int(port))
    case ["requires_tls", host]:
        requires_tls(host)
    case ["targets", *wanted]:
        targets(*wanted)
    case ["check", *files]:
        asyncio.run(check([f for f in files if f != "--any-order"], "--any-order" in files))
    case _:
        sys.exit(__doc__)
