"""Sends, polls and acknowledges with the package `broker`, a client that openapi-python-client has generated.

    tests/generated_client.py URL [--asyncio] [--token TOKEN --key KEY]
"""

import argparse
import asyncio
import importlib
import pkgutil

import broker
from broker.api.messages import ack, poll, post_poll, send
from broker.api.operations import health
from broker.api.sessions import end, look_up, look_up_user, register
from broker.models import Ack, Code, ErrorBody, Poll, Registration, Send, SendWithReceipt, SendWithReceiptToSession, ToSession, ToTopic, ToUser


loop = None  # The event loop, with --asyncio.


def call(api, *args, **options):
    """Calls the broker: waits for the coroutine, or blocks."""
    return loop.run_until_complete(api.asyncio(*args, **options)) if loop else api.sync(*args, **options)


def call_detailed(api, *args, **options):
    """As `call`, with the status of the answer."""
    return loop.run_until_complete(api.asyncio_detailed(*args, **options)) if loop else api.sync_detailed(*args, **options)


def poll_all(client, **query):
    """What waits in the mailbox. Polls again, with a body, which acknowledges it."""
    answer = call(poll, client=client, wait=0, **query)
    after = call(post_poll, client=client, body=Poll(wait=0, after=answer.seq, epoch=answer.epoch, **query))
    assert after.messages == [], after
    return answer.messages


def exchange(client, reader, session):
    """Sends in each way to the session of `reader`, and reads it."""
    sent = call(send, client=client, body=Send(to=ToSession(session="A"), payload={"n": 1}, id="c-1", ttl=60.0), **session)
    assert sent.id == "c-1" and sent.seq > 0, sent
    again = call(send, client=client, body=Send(to=ToSession(session="A"), payload={"n": 1}, id="c-1", ttl=60.0), **session)
    assert again.seq == sent.seq, (sent, again)
    receipt = SendWithReceipt(to=SendWithReceiptToSession(session="A"), payload=[2], id="c-2", receipt=True)
    many = [Send(to=ToSession(session="A"), payload=3).to_dict(), {"to": 7}]
    answers = call(send, client=client, body=many, **session)
    assert answers[0].seq > sent.seq and answers[1].error.code == Code.BAD_REQUEST, answers
    if session:
        assert call(send, client=client, body=receipt, **session).seq > sent.seq

    answer = call(poll, client=reader, wait=0, **reader_session(session))
    first = answer.messages[0]
    assert (first.payload, first.seq, first.type_.value) == ({"n": 1}, sent.seq, "message"), first
    done = call(ack, client=reader, body=Ack(seq=sent.seq, epoch=answer.epoch, **reader_session(session)))
    assert (done.session, done.seq) == ("A", sent.seq), done
    rest = poll_all(reader, **reader_session(session))
    assert [message.payload for message in rest] == ([3, [2]] if session else [3]), rest


def reader_session(session):
    return {"session": "A"} if session else {}


def manage(client, reader):
    """Registers a session, sends to its user, and ends it."""
    info = call(register, "B", client=client, body=Registration(user="ben", ttl=60.0))
    assert (info.user, info.pending) == ("ben", 0), info
    assert call(send, client=client, body=Send(to=ToUser(user="ben"), payload=None)).sessions == 1
    assert call(look_up, "B", client=client).pending == 1
    assert [info.session for info in call(look_up_user, "ben", client=client).sessions] == ["B"]
    assert call_detailed(end, "B", client=client).status_code == 204
    refusal = call(look_up, "B", client=client)
    assert isinstance(refusal, ErrorBody) and refusal.error.code == Code.NOT_FOUND, refusal
    assert call(send, client=client, body=Send(to=ToTopic(topic="news"), payload="hi")).seq > 0
    topics = call(poll, client=reader, wait=0, topic=["news"])
    assert topics.topics["news"] > 0, topics


def main():
    global loop
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--token")
    parser.add_argument("--key")
    parser.add_argument("--asyncio", action="store_true")
    args = parser.parse_args()
    loop = asyncio.new_event_loop() if args.asyncio else None
    for module in pkgutil.walk_packages(broker.__path__, "broker."):
        importlib.import_module(module.name)
    if args.token:
        known = lambda token: broker.AuthenticatedClient(args.url, token, raise_on_unexpected_status=True)
        backend, reader, session = known(args.key), known(args.token), {}
    else:
        backend = reader = broker.Client(args.url, raise_on_unexpected_status=True)
        session = {"session": "C"}
    assert call(health, client=backend).status == "ok"
    exchange(backend, reader, session)
    manage(backend, reader)


main()
