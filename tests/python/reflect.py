"""Drives Hearth with what a server tells about itself, and nothing else.

No .proto file and no generated code: services and messages come from gRPC server reflection.
Runs an instance, describes it, talks to its console, and terminates it.

usage: reflect.py SOCKET IMAGE_ID
"""

import queue
import sys
import threading
import time

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

BOOT_SECONDS = 300


class Service:
    """A service of the server, as its reflection describes it."""

    def __init__(self, channel, pool, name):
        self._channel = channel
        self._descriptor = pool.FindServiceByName(name)

    def __getattr__(self, method_name):
        method = self._descriptor.FindMethodByName(method_name)
        answer = message_factory.GetMessageClass(method.output_type)
        kind = "{}_{}".format(
            "stream" if method.client_streaming else "unary",
            "stream" if method.server_streaming else "unary",
        )
        return getattr(self._channel, kind)(
            "/{}/{}".format(self._descriptor.full_name, method_name),
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )

    def request(self, method_name, **fields):
        """The request message of a method."""
        method = self._descriptor.FindMethodByName(method_name)
        message = message_factory.GetMessageClass(method.input_type)()
        return json_format.ParseDict(fields, message)


def describe(instances, instance_id):
    """The instance, as proto3 JSON says it."""
    request = instances.request("DescribeInstances", instanceIds=[instance_id])
    answer = instances.DescribeInstances(request, timeout=60)
    (instance,) = json_format.MessageToDict(answer)["instances"]
    return instance


def wait_for(instances, instance_id, state):
    """Returns when the instance is in the state."""
    deadline = time.monotonic() + BOOT_SECONDS
    while True:
        instance = describe(instances, instance_id)
        if instance["state"] == state:
            return
        if time.monotonic() > deadline:
            raise SystemExit("{} is {}, not {}".format(instance_id, instance["state"], state))
        time.sleep(0.2)


class Console:
    """The serial console, both ways."""

    def __init__(self, instances, instance_id):
        self._instances = instances
        self._typed = queue.Queue()
        self._typed.put(
            instances.request("Console", open={"instanceId": instance_id, "replay": True})
        )
        self._stream = instances.Console(iter(self._typed.get, None), timeout=2 * BOOT_SECONDS)
        self._seen = b""
        self._more = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        try:
            for piece in self._stream:
                with self._more:
                    self._seen += piece.data
                    self._more.notify_all()
        except grpc.RpcError:
            pass  # The wait below says what is missing.

    def send(self, line):
        """Types a line."""
        message = self._instances.request("Console")
        message.data = line.encode() + b"\n"
        self._typed.put(message)

    def expect(self, text):
        """Waits until the guest has printed the text."""
        with self._more:
            if not self._more.wait_for(lambda: text.encode() in self._seen, BOOT_SECONDS):
                tail = self._seen[-2000:].decode(errors="replace")
                raise SystemExit("the guest never printed {!r}:\n{}".format(text, tail))

    def close(self):
        """Ends the session."""
        self._typed.put(None)
        self._stream.cancel()


def main():
    """The whole story; prints one line for each chapter."""
    socket, image_id = sys.argv[1:]
    # By default gRPC's C core makes an :authority of the socket's path, with escapes that strict
    # HTTP/2 servers refuse.
    channel = grpc.insecure_channel(
        "unix:" + socket, options=[("grpc.default_authority", "localhost")]
    )
    database = ProtoReflectionDescriptorDatabase(channel)
    print("services:", ", ".join(sorted(database.get_services())))
    pool = descriptor_pool.DescriptorPool(database)
    instances = Service(channel, pool, "hearth.v1.InstanceService")

    request = instances.request(
        "RunInstances",
        imageId=image_id,
        memoryMib=128,
        tags=[{"key": "Name", "value": "reflected"}],
    )
    answer = json_format.MessageToDict(instances.RunInstances(request, timeout=60))
    (instance,) = answer["instances"]
    instance_id = instance["instanceId"]
    print("run:", instance_id)
    try:
        wait_for(instances, instance_id, "INSTANCE_STATE_RUNNING")
        print("describe:", describe(instances, instance_id)["state"])

        console = Console(instances, instance_id)
        console.expect("hearth-guest: ready")
        # The answer is not in what is typed, so the echo can't be taken for it.
        console.send("echo the-answer-is-$((6 * 7))")
        console.expect("the-answer-is-42")
        console.close()
        print("console: the guest answered")
    finally:
        request = instances.request("TerminateInstances", instanceIds=[instance_id])
        instances.TerminateInstances(request, timeout=60)
    wait_for(instances, instance_id, "INSTANCE_STATE_TERMINATED")
    print("terminate: done")


if __name__ == "__main__":
    main()
