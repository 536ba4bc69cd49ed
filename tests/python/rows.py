"""The Python clients of SignalR, over every transport, protocol and way in that they have.

Usage: rows.py CLIENT NODE OTHER_NODE APP_SERVER

Each row connects, requests a view model, updates it, says something to a group and hears a witness on the other node there, and
stops; then the app server remembers nobody. One line of a table is printed for each row that has passed.
"""
import asyncio
import importlib.metadata
import json
import logging
import os
import sys
import threading
import time
import urllib.request

PATIENCE = 20


class Responses:
    """Remembers what a client's `Response_VM` handler was called with."""

    def __init__(self):
        self.changed = threading.Condition()
        self.responses = []
        self.malformed = None

    def take(self, arguments):
        with self.changed:
            try:
                # Exactly one argument, and that is [vmId, JSON text].
                ((vm_id, text),) = arguments
                self.responses.append((vm_id, json.loads(text)))
            except (TypeError, ValueError):
                self.malformed = arguments
            self.changed.notify_all()

    def wait(self, what, test, nudge=None):
        """The first response that `test` says yes to. `nudge` is called now and then while there is none."""
        deadline = time.monotonic() + PATIENCE
        with self.changed:
            while True:
                assert self.malformed is None, f"not [[vmId, text]]: {self.malformed}"
                for vm_id, data in self.responses:
                    if test(vm_id, data):
                        return data
                assert time.monotonic() < deadline, f"waited {PATIENCE} s for {what}; there is {self.responses[-3:]}"
                if not self.changed.wait(0.25) and nudge is not None:
                    nudge()


class PySignalR(Responses):
    """pysignalr: asyncio, WebSockets only, always negotiates."""

    WAYS = [("WebSockets", "json", "negotiate"), ("WebSockets", "messagepack", "negotiate")]

    def __init__(self, url, transport, protocol, negotiation):
        super().__init__()
        from pysignalr.client import SignalRClient
        from pysignalr.protocol.json import JSONProtocol
        from pysignalr.protocol.messagepack import MessagepackProtocol

        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.client = SignalRClient(url, protocol=JSONProtocol() if protocol == "json" else MessagepackProtocol())
        opened = threading.Event()

        async def on_open():
            opened.set()

        async def on_response(arguments):
            self.take(arguments)

        self.client.on_open(on_open)
        self.client.on("Response_VM", on_response)
        self.running = asyncio.run_coroutine_threadsafe(self.client.run(), self.loop)
        deadline = time.monotonic() + PATIENCE
        while not opened.wait(0.05):
            assert not self.running.done(), self.running.exception()
            assert time.monotonic() < deadline, "pysignalr does not connect"

    def call(self, method, *arguments):
        completed = threading.Event()
        answer = []

        async def done(message):
            answer.append(message)
            completed.set()

        self.client.on_error(done)
        asyncio.run_coroutine_threadsafe(self.client.send(method, list(arguments), done), self.loop).result(PATIENCE)
        assert completed.wait(PATIENCE), f"{method} is not completed"
        assert not answer[0].error, answer[0].error

    def wait(self, what, test):
        return super().wait(what, test)

    def stop(self):
        socket = self.client._transport._ws
        self.running.cancel()
        asyncio.run_coroutine_threadsafe(socket.close(), self.loop).result(PATIENCE)
        self.loop.call_soon_threadsafe(self.loop.stop)


class SignalRCore(Responses):
    """signalrcore: threads; WebSockets, Server-Sent Events, long polling. MessagePack over long polling does not start in it."""

    WAYS = [
        ("WebSockets", "json", "negotiate"),
        ("WebSockets", "json", "skip"),
        ("WebSockets", "messagepack", "negotiate"),
        ("WebSockets", "messagepack", "skip"),
        ("ServerSentEvents", "json", "negotiate"),
        ("LongPolling", "json", "negotiate"),
    ]
    CAME = {
        "WebSockets": "WebsocketTransport",
        "ServerSentEvents": "SSETransport",
        "LongPolling": "LongPollingTransport",
        "json": "JsonHubProtocol",
        "messagepack": "MessagePackHubProtocol",
    }

    def __init__(self, url, transport, protocol, negotiation):
        super().__init__()
        from signalrcore.hub_connection_builder import HubConnectionBuilder
        from signalrcore.types import HttpTransportType, HubProtocolEncoding

        skip = negotiation == "skip"
        options = {"transport": HttpTransportType(transport), "skip_negotiation": skip}
        encoding = HubProtocolEncoding.text if protocol == "json" else HubProtocolEncoding.binary
        builder = HubConnectionBuilder().configure_logging(logging.CRITICAL).with_url(url, options=options)
        self.polls = transport == "LongPolling"
        self.connection = builder.with_hub_protocol(encoding).build()
        opened = threading.Event()
        self.errors = []
        self.connection.on_open(opened.set)
        self.connection.on_error(self.errors.append)
        self.connection.on("Response_VM", self.take)
        assert self.connection.start(), "signalrcore does not start"
        assert opened.wait(PATIENCE), "signalrcore does not connect"
        # It takes something else in silence where a server does not offer what it prefers.
        came = (type(self.connection.transport).__name__, type(self.connection.protocol).__name__)
        assert came == (self.CAME[transport], self.CAME[protocol]), f"it came to use {came}"

    def call(self, method, *arguments):
        completed = threading.Event()
        self.connection.send(method, list(arguments), lambda message: completed.set())
        # It takes one record out of each answer to a poll, however many there are: completions may come much later.
        assert self.polls or completed.wait(PATIENCE), f"{method} is not completed: {self.errors}"
        assert not self.errors, self.errors

    def wait(self, what, test):
        # Another answer to a poll brings it its next record.
        return super().wait(what, test, (lambda: self.call("Dispose_VM", "Nothing")) if self.polls else None)

    def stop(self):
        # It closes its socket while its thread reads from it, and so waits for the next ping of the server.
        self.connection.stop()


CLIENTS = {"pysignalr": PySignalR, "signalrcore": SignalRCore}


def double(app):
    with urllib.request.urlopen(f"{app}/__double") as answer:
        return json.load(answer)


def empty(app):
    """Waits until the app server remembers nobody, and checks that nothing went wrong on the way there."""
    deadline = time.monotonic() + PATIENCE
    while True:
        state = double(app)
        if state["bindings"] == state["controllers"] == state["view_models"] == 0:
            break
        assert time.monotonic() < deadline, f"the app server still remembers: {state}"
        time.sleep(0.02)
    assert state["leaks"] == state["lost_sends"] == state["dropped_updates"] == 0, state


def row(kind, way, node, other_node, room):
    client = kind(f"{node}/dotnetify", *way)
    client.call("Request_VM", "HelloWorldVM", {"$vmArg": {"FirstName": 'é"😀', "TickInterval": 0}})
    state = client.wait("the state", lambda vm, data: vm == "HelloWorldVM" and "FullName" in data)
    assert state["FullName"] == 'é"😀 World', state
    client.call("Update_VM", "HelloWorldVM", {"FirstName": "Ada", "LastName": "Lovelace"})
    client.wait("the whole name", lambda vm, data: data.get("FullName") == "Ada Lovelace")

    witness = kind(f"{other_node}/dotnetify", *kind.WAYS[0])
    for who in (witness, client):
        who.call("Request_VM", "ChatRoomVM", {"$vmArg": {"ChatRoom": room, "ClientId": "c"}})
        who.wait("the room", lambda vm, data: vm == "ChatRoomVM" and "Messages" in data)
    for speaker, word in ((client, "1"), (witness, "2")):
        speaker.call("Update_VM", "ChatRoomVM", {"SendMessage": {"MessageId": word, "Text": "é"}})
        for who in (client, witness):
            who.wait(f"message {word}", lambda vm, data: data.get("Messages_add", {}).get("MessageId") == word)
    for who in (client, witness):
        heard = [data["Messages_add"]["MessageId"] for _, data in who.responses if "Messages_add" in data]
        assert heard == ["1", "2"], f"each hears each message once: {heard}"
    witness.stop()
    client.stop()


def main():
    name, node, other_node, app = sys.argv[1:]
    kind = CLIENTS[name]
    failed = 0
    for number, way in enumerate(kind.WAYS):
        started = time.monotonic()
        try:
            row(kind, way, node, other_node, f"{name} {number}")
            empty(app)
        except Exception as error:
            failed += 1
            print(f"FAILED {name} {', '.join(way)}: {type(error).__name__}: {error}", flush=True)
            continue
        cells = [name, importlib.metadata.version(name), *way, f"{(time.monotonic() - started) * 1000:.0f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    # Threads of a client that failed must not keep the process.
    os._exit(1 if failed else 0)


main()
