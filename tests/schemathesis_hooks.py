"""Hooks of tests/schemathesis.sh: what the requests need that a schema cannot say."""

import hashlib

import schemathesis


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.operation.path == "/v1/messages/poll":
        post_poll(case)
    elif case.operation.path == "/v1/messages" and case.operation.method == "get":
        poll(case)
    elif case.operation.method == "put" and case.operation.path == "/v1/sessions/{id}":
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


def poll(case):
    """Presence is told of topics that are read."""
    if case.query and case.query.get("presence") is not None and case.meta.generation.mode.is_positive:
        presence = case.query["presence"]
        case.query["topic"] = presence if isinstance(presence, list) else [presence]


def register(case):
    """An id that is a proof is long and random."""
    if isinstance(case.body, dict) and case.body.get("proof") is True and case.meta.generation.mode.is_positive:
        case.path_parameters["id"] = hashlib.sha256(repr(case.path_parameters["id"]).encode("utf-8", "replace")).hexdigest()
