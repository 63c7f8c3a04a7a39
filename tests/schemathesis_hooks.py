"""Hooks of tests/schemathesis.sh: what the requests need that a schema cannot say."""

import hashlib

import schemathesis


@schemathesis.hook
def before_call(context, case, kwargs):
    path, method = case.operation.path, case.operation.method
    if path == "/v1/messages/poll":
        post_poll(case)
    if not case.meta.generation.mode.is_positive:
        return
    if path == "/v1/messages" and method == "get" and case.query:
        case.query.pop("presence", None)  # It is told to readers of a mailbox, of topics that they read too.
    elif path == "/v1/messages" and method == "post":
        send(case)
    elif path == "/v1/sessions/{id}" and method == "put":
        register(case)


def post_poll(case):
    """Polls in bodies do not wait. A wait that is not valid stays what it is."""
    if isinstance(case.body, list) and case.meta.generation.mode.is_positive:
        del case.body[16:]  # Schemathesis 4.32.5 takes an array with one item more than `maxItems` for valid.
    for poll in case.body if isinstance(case.body, list) else [case.body]:
        if isinstance(poll, dict):
            wait = poll.get("wait")
            if wait is None or (isinstance(wait, (int, float)) and 0 <= wait <= 60):
                poll["wait"] = 0


def send(case):
    """Only the broker makes the text of a reply."""
    to = case.body.get("to") if isinstance(case.body, dict) else None
    if isinstance(to, dict) and "reply" in to:
        case.body["to"] = {"session": "A"}


def register(case):
    """An id that is a proof is long and random."""
    if isinstance(case.body, dict) and case.body.get("proof") is True:
        case.path_parameters["id"] = hashlib.sha256(repr(case.path_parameters["id"]).encode("utf-8", "replace")).hexdigest()
